package bpf

// One object serves amd64 and arm64: the program touches no registers of the
// traced machine, and both are little-endian. The two include paths are where
// Debian keeps asm/types.h; the one of the other machine is ignored. Generic
// instructions of the v3 set are in every kernel we run on.
//go:generate go tool bpf2go -target bpfel -type verdict -cflags "-O2 -g -mcpu=v3 -Wall -Wextra -Werror -I/usr/include/x86_64-linux-gnu -I/usr/include/aarch64-linux-gnu" steer steer.bpf.c
//go:generate go tool bpf2go -target bpfel -type verdict -cflags "-O2 -g -mcpu=v3 -Wall -Wextra -Werror -I/usr/include/x86_64-linux-gnu -I/usr/include/aarch64-linux-gnu" port port.bpf.c
