package images

// hostDamages: a link takes a right there that not every user has.
var hostDamages map[string]func(path string, content []byte) error
