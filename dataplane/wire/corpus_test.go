package wire

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// corpus holds the seeds that are checked in beside the code: packets that reach every branch of Locate.
func corpus(t *testing.T) map[string][]byte {
	udp := gopacket.Payload{0, 1, 0, 2, 0, 8, 0, 0}
	v4 := build(t, eth(layers.EthernetTypeIPv4), &layers.IPv4{Version: 4, IHL: 5, SrcIP: ip4A, DstIP: ip4B, Protocol: 17}, udp)
	later := bytes.Clone(v4)
	later[21] = 7
	later6 := chain(t, ProtoFragment, 1)
	later6[57] = 8
	tags := append(append(bytes.Clone(v4[:12]), 0x88, 0xa8, 0, 1, 0x81, 0, 0, 1), v4[12:]...)
	all := map[string][]byte{
		"arp": arpRequest, "ipv4": v4, "ipv4-later-fragment": later, "ipv4-two-tags": tags, "ipv4-cut": v4[:30],
		"ipv6-fragment": chain(t, ProtoFragment, 1), "ipv6-later-fragment": later6, "runt": v4[:13],
	}
	for name, kind := range map[string]uint8{"hop-by-hop": ProtoHopByHop, "routing": ProtoRouting, "options": ProtoDestOptions, "ah": ProtoAH, "mobility": ProtoMobility} {
		all["ipv6-"+name] = chain(t, kind, 1)
		all["ipv6-nine-"+name] = chain(t, kind, 9)
	}
	return all
}

// TestCorpus holds that what is checked in is what corpus makes; SHUNT_WRITE_CORPUS=1 writes it.
func TestCorpus(t *testing.T) {
	dir := filepath.Join("testdata", "fuzz", "FuzzLocate")
	for name, b := range corpus(t) {
		var quoted strings.Builder
		for _, c := range b {
			fmt.Fprintf(&quoted, `\x%02x`, c)
		}
		text := "go test fuzz v1\n[]byte(\"" + quoted.String() + "\")\n"
		path := filepath.Join(dir, name)
		if os.Getenv("SHUNT_WRITE_CORPUS") != "" {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if is, err := os.ReadFile(path); err != nil || string(is) != text {
			t.Errorf("%s is not what the test makes (%v): write it with SHUNT_WRITE_CORPUS=1", path, err)
		}
	}
}
