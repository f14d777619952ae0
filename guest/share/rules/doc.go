// Package rules judges names below a shared folder: which of them a guest never
// sees, which it never changes on the host, and which a person should look at
// before a change of them is applied. It touches no file.
//
// A pattern is written as in .gitignore, with two differences: it is matched as
// file systems that fold names would match it (Fold), and it counts for
// whatever has that name, file or folder, and for all below it.
//
//	.env            that name, at any depth
//	*.pem           any such name, at any depth
//	/notes          that name directly below the root
//	**/.git/hooks   "hooks" directly in ".git", at any depth
//	/a/**/b         "b" at any depth below /a
//	!.env.example   takes back what an earlier pattern says of that name
//
// Of several patterns that match one name the last one counts: the built-in
// list comes first, then the user's, then the share's own.
//
// Protected names count also where there is nothing yet. So "git init" and "git
// clone" fail in a share that the guest writes to: they make a .git/config. A
// share in which they are wanted has "!.git/config" in its protect list (and
// "!.git/hooks", unless git's template folder is empty), or is plain.
package rules
