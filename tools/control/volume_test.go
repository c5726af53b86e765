package control_test

import (
	"testing"

	"github.com/shuntio/shunt/tools/control"
)

func TestHistogram(t *testing.T) {
	was := control.Histogram{Count: 3, Sum: 4, Buckets: []control.Bucket{{Bound: 1, Count: 2}, {Bound: 2, Count: 1}}}
	is := control.Histogram{Count: 103, Sum: 160, Buckets: []control.Bucket{{Bound: 0.5, Count: 50}, {Bound: 1, Count: 2}, {Bound: 2, Count: 50}, {Bound: 9, Count: 1}}}
	now := is.Since(was)
	if now.Count != 100 || now.Sum != 156 || len(now.Buckets) != 3 || now.Buckets[0].Count != 50 || now.Buckets[1] != (control.Bucket{Bound: 2, Count: 49}) {
		t.Errorf("%+v", now)
	}
	if now.Mean() != 1.56 {
		t.Errorf("mean %v", now.Mean())
	}
	for _, test := range []struct{ share, want float64 }{{0.01, 0.5}, {0.5, 0.5}, {0.51, 2}, {0.99, 2}, {0.995, 9}, {1, 9}} {
		if got := now.Quantile(test.share); got != test.want {
			t.Errorf("%v of all are within %v, want %v", test.share, got, test.want)
		}
	}
	var none control.Histogram
	if none.Quantile(0.5) != 0 || none.Mean() != 0 || none.Since(none).Count != 0 {
		t.Error("a histogram of nothing")
	}
}
