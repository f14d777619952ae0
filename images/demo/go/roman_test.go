package roman

import "testing"

func TestThereAndBack(t *testing.T) {
	for n := 1; n < 4000; n++ {
		s, err := Format(n)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := Parse(s); err != nil || back != n {
			t.Fatalf("%d is %s is %d, %v", n, s, back, err)
		}
	}
}

func TestRefusals(t *testing.T) {
	for _, s := range []string{"", "IIII", "MMMM", "hello", "IM"} {
		if n, err := Parse(s); err == nil {
			t.Errorf("Parse(%q) = %d", s, n)
		}
	}
	for _, n := range []int{-1, 0, 4000} {
		if s, err := Format(n); err == nil {
			t.Errorf("Format(%d) = %s", n, s)
		}
	}
}
