//go:build !race

package vxlan

const raceDetector = false
