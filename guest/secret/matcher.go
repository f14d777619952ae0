package secret

// A matcher finds many short texts in a stream in one pass, whatever pieces the
// stream comes in (Aho and Corasick, 1975). It is a table: for each state and
// each class of bytes the next state. Bytes that are in no pattern are class 0.
type matcher struct {
	class   [256]uint16
	classes int
	next    []int32
	depth   []int32    // of a state: how many bytes of a pattern have been seen
	found   [][]string // owners of the patterns that end in a state
	length  []int32    // of the longest of them
}

type pattern struct{ owner, text string }

func patternsOf(owner string, forms []string) (out []pattern) {
	for _, f := range forms {
		out = append(out, pattern{owner, f})
	}
	return out
}

// newMatcher returns nil if there is nothing to find.
func newMatcher(ps []pattern) *matcher {
	if len(ps) == 0 {
		return nil
	}
	m := &matcher{classes: 1}
	for _, p := range ps {
		for i := range len(p.text) {
			if c := p.text[i]; m.class[c] == 0 {
				m.class[c] = uint16(m.classes)
				m.classes++
			}
		}
	}
	m.grow(0)
	for _, p := range ps {
		s := int32(0)
		for i := range len(p.text) {
			at := int(s)*m.classes + int(m.class[p.text[i]])
			if m.next[at] == 0 {
				n := m.grow(int32(i + 1)) // may move the table
				m.next[at] = n
			}
			s = m.next[at]
		}
		m.found[s] = append(m.found[s], p.owner)
		m.length[s] = m.depth[s]
	}
	m.link()
	return m
}

func (m *matcher) grow(depth int32) int32 {
	m.next = append(m.next, make([]int32, m.classes)...)
	m.depth = append(m.depth, depth)
	m.found = append(m.found, nil)
	m.length = append(m.length, 0)
	return int32(len(m.depth) - 1)
}

// link fills, in order of depth, the steps that lead out of the tree: to the
// longest text that is still possible.
func (m *matcher) link() {
	fail := make([]int32, len(m.depth))
	var queue []int32
	for c := range m.classes {
		if s := m.next[c]; s != 0 {
			queue = append(queue, s)
		}
	}
	for len(queue) > 0 {
		s := queue[0]
		queue = queue[1:]
		f := fail[s]
		m.found[s] = append(m.found[s], m.found[f]...)
		m.length[s] = max(m.length[s], m.length[f])
		for c := range m.classes {
			at, other := int(s)*m.classes+c, m.next[int(f)*m.classes+c]
			if to := m.next[at]; to != 0 {
				fail[to] = other
				queue = append(queue, to)
			} else {
				m.next[at] = other
			}
		}
	}
}

// step goes one byte on.
func (m *matcher) step(s int32, c byte) int32 {
	return m.next[int(s)*m.classes+int(m.class[c])]
}
