package guest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
)

// xzMagic begins the payload of Debian's stock kernels.
var xzMagic = []byte("\xfd7zXZ\x00")

// copyKernel puts the kernel where QEMU will load it from, decompressed: QEMU
// enters an ELF image at its PVH entry, and an emulated CPU needn't spend most
// of the boot on decompression. A kernel packed in another way, or a machine
// without xz, still boots, only slower.
func copyKernel(ctx context.Context, from, to string) error {
	image, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	payload, err := payload(image)
	if err != nil {
		return fmt.Errorf("%s: %w", from, err)
	}
	if bytes.HasPrefix(payload, xzMagic) {
		// The size of the content follows the stream, which xz reports and
		// which --single-stream passes over.
		cmd := exec.CommandContext(ctx, "xz", "-dc", "--single-stream")
		cmd.Stdin = bytes.NewReader(payload)
		if out, err := cmd.Output(); err == nil && bytes.HasPrefix(out, []byte("\x7fELF")) {
			image = out
		}
	}
	file, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = file.Write(image)
	return errors.Join(err, file.Sync(), file.Close())
}

// payload finds the compressed kernel in a bzImage by its setup header
// (Documentation/arch/x86/boot.rst, protocol 2.08 and newer).
func payload(image []byte) ([]byte, error) {
	const setupSectors, magic, version, payloadOffset, payloadLength, end = 0x1f1, 0x202, 0x206, 0x248, 0x24c, 0x250
	if len(image) < end || string(image[magic:magic+4]) != "HdrS" || binary.LittleEndian.Uint16(image[version:]) < 0x208 {
		return nil, errors.New("it is not a bzImage of boot protocol 2.08 or newer")
	}
	const sector = 512
	begin := (uint64(image[setupSectors])+1)*sector + uint64(binary.LittleEndian.Uint32(image[payloadOffset:]))
	length := uint64(binary.LittleEndian.Uint32(image[payloadLength:]))
	if begin+length > uint64(len(image)) {
		return nil, errors.New("its payload is cut short")
	}
	return image[begin : begin+length], nil
}
