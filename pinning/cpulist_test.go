package pinning

import (
	"slices"
	"strings"
	"testing"
)

func TestParseList(t *testing.T) {
	for _, tc := range []struct {
		in   string
		want []int
		err  string
	}{
		{"", nil, ""},
		{"\n", nil, ""},
		{"0", []int{0}, ""},
		{"0-3,8,10-11\n", []int{0, 1, 2, 3, 8, 10, 11}, ""},
		{"3, 1", []int{3, 1}, ""},
		{"8191", []int{8191}, ""},
		{"0-1,1", nil, "CPU 1 is named twice"},
		{"3-1", nil, "runs backwards; write 1-3"},
		{"8192", nil, "beyond the last possible CPU, 8191"},
		{"0-4294967295", nil, "beyond the last possible"},
		{"99999999999999999999999", nil, "beyond the last possible"},
		{"1,,2", nil, "a number is missing beside a comma"},
		{",", nil, "a number is missing"},
		{"-1", nil, `"-1" is no CPU or range`},
		{"1-", nil, `"1-" is no CPU or range`},
		{"1-2-3", nil, "no CPU or range"},
		{"+1", nil, "no CPU or range"},
		{"0x1", nil, "no CPU or range"},
		{"0-7:2/4", nil, "no CPU or range"},
		{"auto", nil, "write numbers and ranges such as 0-3,8"},
	} {
		got, err := ParseList(tc.in)
		if tc.err == "" {
			if err != nil || !slices.Equal(got, tc.want) {
				t.Errorf("%q: %v, %v; want %v", tc.in, got, err, tc.want)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), tc.err) {
			t.Errorf("%q: %v, %v; want an error with %q", tc.in, got, err, tc.err)
		}
	}
}

func TestFormatList(t *testing.T) {
	for want, cpus := range map[string][]int{
		"": nil, "5": {5}, "0-1": {0, 1}, "0-3,8,10-11": {0, 1, 2, 3, 8, 10, 11}, "3,1": {3, 1},
	} {
		if got := FormatList(cpus); got != want {
			t.Errorf("%v: %q, want %q", cpus, got, want)
		}
	}
}

// Whatever is accepted is in bounds, without doubles, and reads back the same.
func FuzzParseList(f *testing.F) {
	for _, seed := range []string{"", "0-3,8,10-11\n", "3-1", "1,,2", "0-8191", "18446744073709551616", " 7 , 2-4"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		cpus, err := ParseList(s)
		if err != nil {
			if cpus != nil {
				t.Fatalf("%q: both %v and %v", s, cpus, err)
			}
			return
		}
		if once := slices.Compact(sorted(cpus)); len(once) != len(cpus) || len(once) > 0 && (once[0] < 0 || once[len(once)-1] >= MaxCPUs) {
			t.Fatalf("%q: doubles or out of bounds in %v", s, cpus)
		}
		back, err := ParseList(FormatList(cpus))
		if err != nil || !slices.Equal(back, cpus) {
			t.Fatalf("%q: %v reads back as %v, %v", s, cpus, back, err)
		}
	})
}
