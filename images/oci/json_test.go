package oci

import (
	"errors"
	"runtime"
	"strconv"
	"strings"
	"testing"
)

// I07: documents of as many values as fit into a quarter of what registries take cost the daemon a bounded number of bytes, also if they
// are refused; the largest that are good are the control. Without the bound the first ones cost 121 MB.
func TestDocumentsBounded(t *testing.T) {
	const size = maxManifest / 4
	digest := digestOf(nil)
	full := func(begin, value, end string) []byte {
		n := (size - len(begin) - len(end)) / (len(value) + 1)
		return []byte(begin + strings.Repeat(value+",", n-1) + value + end)
	}
	keys := func(begin, end string) []byte {
		var b strings.Builder
		b.WriteString(begin)
		for i := 0; b.Len() < size-100; i++ {
			b.WriteString(`"` + strconv.Itoa(i) + `":"",`)
		}
		return []byte(b.String() + `"z":""` + end)
	}
	document := func(b []byte) error { _, err := parseDocument(b); return err }
	config := func(b []byte) error { _, _, _, err := parseConfig(b, 1); return err }
	saved := func(b []byte) error { var images []struct{ Layers []string }; return decode(b, &images) }
	for name, c := range map[string]struct {
		parse func([]byte) error
		doc   []byte
		want  error
	}{
		"manifests":      {document, full(`{"schemaVersion":2,"manifests":[`, `{}`, `]}`), ErrTooBig},
		"layers":         {document, full(`{"schemaVersion":2,"layers":[`, `{}`, `]}`), ErrTooBig},
		"nulls":          {document, full(`{"schemaVersion":2,"layers":[`, `null`, `]}`), ErrTooBig},
		"annotations":    {document, keys(`{"schemaVersion":2,"manifests":[{"annotations":{`, `}}]}`), ErrTooBig},
		"Env":            {config, full(`{"config":{"Env":[`, `""`, `]}}`), ErrTooBig},
		"Labels":         {config, keys(`{"config":{"Labels":{`, `}}}`), ErrTooBig},
		"diff_ids":       {config, full(`{"rootfs":{"diff_ids":[`, `""`, `]}}`), ErrTooBig},
		"unknown values": {config, full(`{"x":[`, `[]`, `]}`), ErrTooBig},
		"depth":          {document, []byte(strings.Repeat("[", maxValues-1)), ErrMalformed},
		"saved images":   {saved, full(`[`, `{}`, `]`), ErrTooBig},
		"a quote":        {document, []byte(`{"schemaVersion":2,"a\"":"` + strings.Repeat(",", size-100)), ErrMalformed},

		"an index of 1,000": {document, []byte(`{"schemaVersion":2,"manifests":[` + strings.Repeat(`{"mediaType":"`+typeManifest+`","digest":"`+digest+`","size":1,"platform":{"os":"linux","architecture":"amd64"},"annotations":{"a":"b","c":"d"}},`, maxDescs-1) +
			`{"mediaType":"` + typeManifest + `","digest":"` + digest + `","size":1}]}`), nil},
		"a text of commas": {config, []byte(`{"os":"linux","architecture":"amd64","author":"` + strings.Repeat(`\\,\",`, 50_000) + `","rootfs":{"diff_ids":["` + digest + `"]}}`), nil},
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		err := c.parse(c.doc)
		runtime.ReadMemStats(&after)
		if !errors.Is(err, c.want) || (c.want == nil) != (err == nil) {
			t.Errorf("%s: %v, expected %v", name, err, c.want)
		}
		// All that is allocated, collected or not: a text may be copied, and 65,536 values are as many descriptors, of which append makes some more.
		if took := after.TotalAlloc - before.TotalAlloc; took > 32<<20 {
			t.Errorf("%s: %d MB for a document of %d kB", name, took>>20, len(c.doc)>>10)
		}
	}
}
