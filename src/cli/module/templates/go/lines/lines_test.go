package lines

import (
	"strings"
	"testing"
)

func TestSettingsAreLines(t *testing.T) {
	text, err := Of([][2]string{{"jdk", "17"}, {"lang", "C"}})
	if err != nil || text != "jdk = 17\nlang = C\n" {
		t.Fatalf("%q, %v", text, err)
	}
}

func TestASettingOfTwoLinesIsRefused(t *testing.T) {
	_, err := Of([][2]string{{"jdk", "1\n7"}})
	if err == nil || !strings.Contains(err.Error(), "`jdk`") {
		t.Fatalf("%v", err)
	}
}
