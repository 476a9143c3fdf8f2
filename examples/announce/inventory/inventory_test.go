package inventory

import "testing"

func TestAMachineIsPutBelowTheURLByItsName(t *testing.T) {
	place, err := Place("https://inventory.example/api/", Machine{Name: "web-1"})
	if err != nil || place != "https://inventory.example/api/machines/web-1" {
		t.Fatalf("%q, %v", place, err)
	}
	for _, odd := range []string{"", "inventory.example", "file:///etc/passwd", "-o/tmp/x"} {
		if place, err := Place(odd, Machine{Name: "web-1"}); err == nil {
			t.Fatalf("%q was taken for %q", odd, place)
		}
	}
}

func TestAnAnswerHasAMeaning(t *testing.T) {
	for status, meaning := range map[string]Meaning{
		"200": Known, "201\n": Known, "204": Known, "401": Never, "404": Never, "429": Later, "500": Later, "301": Later, "000": Later, "": Later,
	} {
		if Of(status) != meaning {
			t.Errorf("%q means %v", status, Of(status))
		}
	}
}
