#!/bin/busybox sh
# The guest's first and only program. It inserts the modules, then serves
# commands that come on a virtio-serial port, one line each:
#
#   run ID HEX   run HEX (a shell script) in the background
#   kill ID      kill it and what it started
#
# and answers, in the order the commands end, with one line each; the output is
# in hexadecimal, so that a line cut short by a reset is told from the next:
#
#   ready VERSION
#   done ID STATUS HEX
#
# Output leaves through one process (answer), fed by lines through a pipe, so
# that commands may run at the same time.

/bin/busybox --install -s /bin
export PATH=/usr/bin:/bin HOME=/
mkdir -p /proc /sys /dev /run /tmp /root
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /run

if [ -e /modules/order ]; then
	while read -r module; do
		insmod "/modules/$module" || echo "shunt: inserting $module failed"
	done </modules/order

	# The command line may name a disk with a root file system; its init is
	# this same script.
	root=$(sed -n 's/.*shunt\.root=\([^ ]*\).*/\1/p' /proc/cmdline)
	if [ -n "$root" ]; then
		until [ -b "$root" ]; do usleep 10000; done
		mount -t ext4 "$root" /root && umount -l /run /dev /sys /proc && exec switch_root /root /init
	fi
fi
ip link set lo up

# busybox's shell prefers its own ip to the real one, but a function to both.
for program in /usr/bin/*; do
	echo "${program##*/}() { $program \"\$@\"; }"
done >/run/programs

# Ports appear some time after their module.
port=
while [ -z "$port" ]; do
	for p in /sys/class/virtio-ports/*; do
		[ "$(cat "$p/name" 2>/dev/null)" = shunt.control ] && port=/dev/${p##*/}
	done
	[ -e "$port" ] || { port=; usleep 10000; }
done
exec 3<>"$port"
mkfifo /run/ended
exec 4<>/run/ended

answer() {
	while read -r id status <&4; do
		printf 'done %s %s ' "$id" "$status"
		xxd -p "/run/$id.out" | tr -d '\n'
		echo
		rm -f "/run/$id" "/run/$id.out" "/run/$id.pid"
	done
}

serve() {
	printf '%s' "$2" | xxd -r -p >"/run/$1"
	setsid sh -c 'echo $$ >"$0.pid"; . /run/programs; . "$0"' "/run/$1" </dev/null >"/run/$1.out" 2>&1 3>&- 4>&-
	echo "$1 $?" >&4
}

# A command that was just begun may not have written its process group yet; one
# that has ended has no file any more.
stop() {
	while [ -e "/run/$1" ]; do
		kill -9 "-$(cat "/run/$1.pid" 2>/dev/null)" 2>/dev/null && return
		usleep 100000
	done
}

answer >&3 &
echo "ready $(uname -r)" >&3
echo "shunt: ready"
while :; do
	# Reading fails while nobody has the other end open.
	read -r verb id hex <&3 || { usleep 100000; continue; }
	case $verb in
	run) : >"/run/$id"; serve "$id" "$hex" & ;;
	kill) stop "$id" & ;;
	esac
done
