//go:build bench

package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"

	"github.com/carrel-vm/carrel/images/oci"
)

// What a benchmark of images runs in processes of their own: ours, as the daemon would do it, and a small
// one that waits for another and tells how much memory that one took. Its own is what a fork leaves in the
// figure, which is why the benchmark itself, with a registry in its memory, does not do that.
func init() {
	if len(os.Args) < 3 {
		return
	}
	store := oci.Open(os.Args[2])
	var err error
	switch os.Args[1] {
	case "oci-pull":
		_, err = store.Fetch(context.Background(), oci.Registry(os.Args[3], oci.RegistryOptions{PlainHTTP: true}), oci.Platform{OS: "linux", Arch: "amd64"}, nil)
	case "oci-root":
		var img *oci.Image
		if img, err = store.Load(os.Args[3]); err != nil {
			break
		}
		var f *os.File
		if f, err = os.Create(os.Args[4]); err != nil {
			break
		}
		_, err = store.WriteRoot(context.Background(), img, f, oci.Limits{}, nil)
	case "memory-of":
		cmd := exec.Command(os.Args[2], os.Args[3:]...)
		cmd.Stderr = os.Stderr
		if err = cmd.Run(); err == nil {
			fmt.Println(cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss)
		}
	default:
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// images measures how an OCI image comes and becomes a root: beside skopeo copy, and beside umoci unpack
// with mkfs.erofs. The image is the default one's root, Debian with tools and without /usr/local, in three layers.
func (b *bench) images() {
	for _, tool := range []string{"umoci", "skopeo", "mkfs.erofs"} {
		if _, err := exec.LookPath(tool); err != nil {
			b.Fatalf("%v (scripts/setup)", err)
		}
	}
	dir := b.TempDir()
	s := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer s.Close()
	ref := strings.TrimPrefix(s.URL, "http://") + "/bench/it:1"
	var sizes [2]int64 // of the tars, of the blobs
	root := b.TempDir()
	if out, err := exec.Command("mount", "-t", "erofs", "-o", "loop,ro", b.image.Root, root).CombinedOutput(); err != nil {
		b.Fatalf("mount the default image's root: %v: %s", err, out)
	}
	unmount := sync.OnceFunc(func() {
		if out, err := exec.Command("umount", root).CombinedOutput(); err != nil {
			b.Errorf("%v: %s", err, out)
		}
	})
	b.Cleanup(unmount)
	// Without /usr/local, which is one more toolchain.
	parts := [][]string{{"usr/lib"}, {"usr/bin", "usr/sbin"}, {"bin", "etc", "lib", "lib64", "sbin", "usr/include", "usr/share", "var"}}
	fill := func(w *tar.Writer, layer int) {
		for _, part := range parts[layer] {
			b.addTree(w, root, part)
		}
	}
	digest := b.pushImage(s.URL, "bench/it", &sizes, fill, 3)
	b.shared(s.URL, dir, fill)
	unmount()
	mb := func(n int64) float64 { return float64(n) / 1e6 }
	n := 0
	fresh := func(name string) string { n++; return filepath.Join(dir, fmt.Sprint(name, n)) }

	// The pull.
	var memory [4]float64 // MB: pull, skopeo, root, umoci and mkfs.erofs
	timed := func(which int, size int64, args ...string) float64 {
		var out bytes.Buffer
		cmd := exec.Command(os.Args[0], append([]string{"memory-of"}, args...)...)
		cmd.Stdout, cmd.Stderr = &out, os.Stderr
		begin := time.Now()
		if err := cmd.Run(); err != nil {
			b.Fatalf("%q: %v", args, err)
		}
		took := ms(time.Since(begin))
		kib, err := strconv.ParseFloat(strings.TrimSpace(out.String()), 64)
		if err != nil {
			b.Fatal(err)
		}
		memory[which] = max(memory[which], kib*1024/1e6)
		return mb(size) / took * 1000
	}
	// What was made last stays, and nothing else: a disk has not room for all.
	var store, layout string
	next := func(was *string, name string) string {
		if *was != "" {
			if err := os.RemoveAll(*was); err != nil {
				b.Fatal(err)
			}
		}
		*was = fresh(name)
		return *was
	}
	ours, peer := b.turns(b.n, func() float64 {
		return timed(0, sizes[1], os.Args[0], "oci-pull", next(&store, "store"), ref)
	}, func() float64 {
		return timed(1, sizes[1], "skopeo", "copy", "-q", "--insecure-policy", "--src-tls-verify=false", "docker://"+ref, "oci:"+next(&layout, "layout")+":1")
	})
	b.median("images_pull", "MB/s", ours, limit{}, fmt.Sprintf("an image of three layers, %.0f MB packed, from a registry on loopback to our store: verified, and on disk before it is visible (fsync)", mb(sizes[1])))
	b.median("skopeo_copy", "MB/s", peer, limit{}, "`skopeo copy` of it to an OCI layout, without fsync")
	b.ratio("images_pull_over_skopeo", "skopeo_copy", ours, peer, least(1), "of pairs")

	// The root.
	var last [2]string
	ours, peer = b.turns(b.n, func() float64 {
		return timed(2, sizes[0], os.Args[0], "oci-root", store, digest, next(&last[0], "ours"))
	}, func() float64 {
		bundle := fresh("bundle")
		next(&last[1], "mkfs")
		took := mb(sizes[0]) / timed(3, sizes[0], "umoci", "unpack", "--image", layout+":1", bundle)
		took += mb(sizes[0]) / timed(3, sizes[0], "mkfs.erofs", last[1], filepath.Join(bundle, "rootfs"))
		if err := os.RemoveAll(bundle); err != nil {
			b.Fatal(err)
		}
		return mb(sizes[0]) / took
	})
	b.median("images_root", "MB/s", ours, limit{}, fmt.Sprintf("the layers, %.0f MB unpacked, to one EROFS file, not compressed", mb(sizes[0])))
	b.median("umoci_mkfs", "MB/s", peer, limit{}, "`umoci unpack`, then `mkfs.erofs` without compression")
	b.ratio("images_root_over_umoci_mkfs", "umoci_mkfs", ours, peer, least(1), "of pairs")
	for i, f := range []struct {
		name, how string
		goal      limit
	}{
		{"images_pull_memory", "greatest resident memory of a process that pulls", most(200)}, {"skopeo_memory", "of `skopeo copy`", limit{}},
		{"images_root_memory", "of a process that writes the root", most(200)}, {"umoci_mkfs_memory", "of `umoci unpack` and `mkfs.erofs`, the greater", limit{}},
	} {
		b.add(figure{Name: f.name, Value: memory[i], Unit: "MB", N: 1, How: fmt.Sprintf("%s, in %d runs", f.how, b.n+1)}, f.goal)
	}
	var bytes [2]float64
	for i, path := range last {
		fi, err := os.Stat(path)
		if err != nil {
			b.Fatal(err)
		}
		bytes[i] = mb(fi.Size())
	}
	b.add(figure{Name: "mkfs_size", Value: bytes[1], Unit: "MB", N: 1, How: "the EROFS file of `mkfs.erofs`"}, limit{})
	b.add(figure{Name: "images_root_size", Value: bytes[0], Unit: "MB", N: 1, How: "ours"}, limit{})

	// The greatest that the limits allow.
	most1M := b.pushImage(s.URL, "bench/many", &sizes, func(w *tar.Writer, _ int) {
		for i := range 999_000 {
			name := fmt.Sprintf("%03d/some-name-of-a-file-%d", i/1000, i)
			if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Typeflag: tar.TypeReg, Size: 8}); err != nil {
				b.Fatal(err)
			}
			fmt.Fprintf(w, "%08d", i)
		}
	}, 1)
	many := fresh("store")
	memory[2] = 0
	timed(0, 1, os.Args[0], "oci-pull", many, strings.Replace(ref, "/it:", "/many:", 1))
	rate := timed(2, sizes[0], os.Args[0], "oci-root", many, most1M, fresh("ours"))
	b.add(figure{Name: "images_root_million", Value: rate, Unit: "MB/s", N: 1, How: fmt.Sprintf("a root of 999,000 files, %.0f MB of tar", mb(sizes[0]))}, limit{})
	b.add(figure{Name: "images_root_million_memory", Value: memory[2], Unit: "MB", N: 1, How: "greatest resident memory: as many entries as the limits allow"}, most(200))
}

// shared measures what five images take that are the same but for a layer of 10 MB of their own: a layer that
// several have is kept once, and each has its own root.
func (b *bench) shared(url, dir string, fill func(*tar.Writer, int)) {
	const images, own = 5, 10 << 20
	dir = filepath.Join(dir, "five")
	store := oci.Open(filepath.Join(dir, "oci"))
	size := func(root string) (n float64) {
		err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
			var st syscall.Stat_t
			if err == nil && !d.IsDir() {
				err = syscall.Lstat(path, &st)
				n += float64(st.Blocks) * 512 / 1e6
			}
			return err
		})
		if err != nil {
			b.Fatal(err)
		}
		return n
	}
	var one, roots float64
	for i := range images {
		repo := fmt.Sprint("bench/five", i)
		var sizes [2]int64
		digest := b.pushImage(url, repo, &sizes, func(w *tar.Writer, layer int) {
			if layer == 0 {
				fill(w, 1) // /usr/bin and /usr/sbin
				return
			}
			p := make([]byte, own)
			_, _ = rand.NewChaCha8([32]byte{byte(i)}).Read(p) // never fails
			if err := w.WriteHeader(&tar.Header{Name: "own", Mode: 0o644, Typeflag: tar.TypeReg, Size: own}); err != nil {
				b.Fatal(err)
			}
			if _, err := w.Write(p); err != nil {
				b.Fatal(err)
			}
		}, 2)
		if _, err := store.Fetch(b.Context(), oci.Registry(strings.TrimPrefix(url, "http://")+"/"+repo+":1", oci.RegistryOptions{PlainHTTP: true}), oci.Platform{OS: "linux", Arch: "amd64"}, nil); err != nil {
			b.Fatal(err)
		}
		if i == 0 {
			one = size(dir)
		}
		img, err := store.Load(digest)
		if err != nil {
			b.Fatal(err)
		}
		f, err := os.Create(filepath.Join(dir, "root"))
		if err != nil {
			b.Fatal(err)
		}
		_, err = store.WriteRoot(b.Context(), img, f, oci.Limits{}, nil)
		if err := errors.Join(err, f.Close()); err != nil {
			b.Fatal(err)
		}
		roots += size(f.Name())
		if err := os.Remove(f.Name()); err != nil {
			b.Fatal(err)
		}
	}
	five := size(dir)
	b.add(figure{Name: "images_five_layers", Value: five, Unit: "MB", N: 1, How: fmt.Sprintf("what the store keeps of five images' packed layers, one shared by all, and one of %d MB in each; one image alone has %.0f MB", own>>20, one)}, limit{})
	b.add(figure{Name: "images_five_roots", Value: roots, Unit: "MB", N: 1, How: "their five roots: each image has a whole one, that all its guests share"}, limit{})
	if err := os.RemoveAll(dir); err != nil {
		b.Fatal(err)
	}
}

// addTree adds a folder of root, or nothing if there is none.
func (b *bench) addTree(w *tar.Writer, root, part string) {
	links := map[uint64]string{}
	err := filepath.WalkDir(filepath.Join(root, part), func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		target := ""
		if fi.Mode()&os.ModeSymlink != 0 {
			if target, err = os.Readlink(path); err != nil {
				return err
			}
		}
		h, err := tar.FileInfoHeader(fi, target)
		if err != nil {
			return nil // a socket
		}
		h.Name, _ = filepath.Rel(root, path)
		h.Uname, h.Gname = "", ""
		if st := fi.Sys().(*syscall.Stat_t); st.Nlink > 1 && fi.Mode().IsRegular() {
			if first, ok := links[st.Ino]; ok {
				h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
			}
			links[st.Ino] = h.Name
		}
		if err := w.WriteHeader(h); err != nil || h.Typeflag != tar.TypeReg {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(w, f)
		return err
	})
	if err != nil && !os.IsNotExist(err) {
		b.Fatal(err)
	}
}

// pushImage builds an image of gzipped layers in a registry and returns its digest.
func (b *bench) pushImage(url, repo string, sizes *[2]int64, fill func(w *tar.Writer, layer int), layers int) string {
	*sizes = [2]int64{}
	put := func(method, path, kind string, body []byte) {
		req, err := http.NewRequest(method, url+path, bytes.NewReader(body))
		if err != nil {
			b.Fatal(err)
		}
		req.Header.Set("Content-Type", kind)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			b.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode >= 300 {
			b.Fatalf("%s %s: %s", method, path, resp.Status)
		}
	}
	type desc struct {
		MediaType string `json:"mediaType"`
		Digest    string `json:"digest"`
		Size      int    `json:"size"`
	}
	digest := func(p []byte) string {
		sum := sha256.Sum256(p)
		return "sha256:" + hex.EncodeToString(sum[:])
	}
	blob := func(kind string, p []byte) desc {
		d := desc{kind, digest(p), len(p)}
		put("POST", "/v2/"+repo+"/blobs/uploads/?digest="+d.Digest, "application/octet-stream", p)
		return d
	}
	var descs []desc
	var diffs []string
	for i := range layers {
		var packed bytes.Buffer
		sum := sha256.New()
		z, err := gzip.NewWriterLevel(&packed, gzip.BestSpeed)
		if err != nil {
			b.Fatal(err)
		}
		counted := &counter{w: io.MultiWriter(z, sum)}
		w := tar.NewWriter(counted)
		fill(w, i)
		if err := w.Close(); err != nil {
			b.Fatal(err)
		}
		if err := z.Close(); err != nil {
			b.Fatal(err)
		}
		sizes[0] += counted.n
		sizes[1] += int64(packed.Len())
		diffs = append(diffs, "sha256:"+hex.EncodeToString(sum.Sum(nil)))
		descs = append(descs, blob("application/vnd.oci.image.layer.v1.tar+gzip", packed.Bytes()))
	}
	encode := func(v any) []byte {
		p, err := json.Marshal(v)
		if err != nil {
			b.Fatal(err)
		}
		return p
	}
	config := blob("application/vnd.oci.image.config.v1+json", encode(map[string]any{
		"os": "linux", "architecture": "amd64", "config": map[string]any{}, "rootfs": map[string]any{"type": "layers", "diff_ids": diffs}}))
	const kind = "application/vnd.oci.image.manifest.v1+json"
	m := encode(map[string]any{"schemaVersion": 2, "mediaType": kind, "config": config, "layers": descs})
	put("PUT", "/v2/"+repo+"/manifests/1", kind, m)
	return digest(m)
}

type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	return c.w.Write(p)
}
