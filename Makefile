# shunt's two commands, `make demo` and `make test`, need a Debian machine with Go
# and make, as root; they install the rest. `make help` lists the others.

BUILD := $(CURDIR)/.build

# Places that a plain `su` or a fresh Go leaves out of PATH.
export PATH := $(PATH):/usr/local/go/bin:/usr/sbin:/sbin

ifeq ($(shell PATH="$(PATH)" command -v go 2>/dev/null),)
$(error Go is missing; install Go 1.26 or newer (https://go.dev/dl) to /usr/local/go or put it into PATH)
endif

# Static binaries, and no C compiler needed; only -race turns cgo on.
export CGO_ENABLED := 0

# How a fresh machine gets its packages. SETUP=true where there is no apt-get.
SETUP ?= tools/setup

# How long each fuzz target and each package's tests may run.
FUZZTIME ?= 5s
TIMEOUT  ?= 30m

# Tests that were not run are named here, each with its reason (see tools/need).
export SHUNT_SKIPPED := $(BUILD)/skipped

# The packages that probe optional kernel features, and those that stand on them; they
# are tested once more with every probe answering no. make soak does so with all.
MASKED := ./bpf/... ./dataplane/uring ./dataplane/xsk ./blk ./blk/file ./blk/nbd ./tools/shuntd/...

# The packages that measure, or need both cores: their tests have the machine to themselves.
# Those of the others wait more than they compute, and run two packages at a time.
ALONE := ./bench ./dataplane ./dataplane/shm ./dataplane/xsk ./tools/lab ./vxlan

STAGES := build lint suite suite-masked fuzz bench-once baseline-test

.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help setup build generate demo test check soak bench baseline $(STAGES) clean
.DEFAULT_GOAL := build

stage = @printf '\n== %s  %s\n' "$@" "$$(date +%T)"

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

setup: ## install the Debian packages the tests need (as root, only what is missing)
	@$(SETUP) test

build: ## all binaries, static, to .build/
	$(stage)
	@mkdir -p $(BUILD)
	go build ./...
	go build -trimpath -o $(BUILD)/ ./tools/...

generate: ## everything generated and checked in (needs clang: make setup)
	go generate ./...
	cd bench/baseline && go mod tidy

demo: ## two nodes, a guest, VXLAN over AF_XDP, on this machine
	@$(SETUP) demo
	go run ./tools/lab/demo

# All stages run even when one fails; the command fails if any did.
test: ## the whole suite, as CI runs it
	@$(SETUP) test
	@mkdir -p $(BUILD) && rm -f $(SHUNT_SKIPPED)
	@$(MAKE) --no-print-directory -k $(STAGES); status=$$?; \
	 if [ -s $(SHUNT_SKIPPED) ]; then printf '\n== not run\n'; sort -u $(SHUNT_SKIPPED); fi; \
	 printf '\n== make test: %s  %s\n' "$$([ $$status = 0 ] && echo passed || echo FAILED)" "$$(date +%T)"; \
	 exit $$status

# The packages that make check looks at: PACKAGES=./blk/... is quicker still.
PACKAGES ?= ./...

# With the race detector, where there is a C compiler. The linters look at the same files as
# the tests then, those with the tag race, so that each package is compiled once for both.
HOSTCC  := $(shell command -v gcc || command -v clang)
GOFLAGS := $(filter-out -race,$(shell go env GOFLAGS))
RACED   := $(if $(HOSTCC),CGO_ENABLED=1 CC=$(HOSTCC) GOFLAGS="$(strip $(GOFLAGS) -race)")

# Tests wait and linters compute, so they run beside each other. What vet has looked at go test
# need not look at again.
check: format ## the quick loop: format, vet, staticcheck, unit tests
	@mkdir -p $(BUILD)
	@[ -n "$(HOSTCC)" ] || echo 'no C compiler: without -race'
	@printf '\n== vet  %s\n' "$$(date +%T)"; $(RACED) go vet $(PACKAGES); vet=$$?; \
	 trap 'kill 0' INT; \
	 { $(call others,$(RACED)); } >$(BUILD)/lint 2>&1 & \
	 printf '\n== unit tests  %s\n' "$$(date +%T)"; \
	 $(RACED) go test -short -vet=off -timeout 3m $(PACKAGES); tests=$$?; \
	 wait $$!; lint=$$?; \
	 printf '\n== vet for arm64, staticcheck\n'; cat $(BUILD)/lint; \
	 printf '\n== make check: %s  %s\n' "$$([ $$((vet | tests | lint)) = 0 ] && echo passed || echo FAILED)" "$$(date +%T)"; \
	 [ $$((vet | tests | lint)) = 0 ]

# The linters behind vet, with or without the race detector's environment. staticcheck itself is built without it; most of its time
# would be garbage collection.
others = status=0; GOARCH=arm64 go vet $(PACKAGES) || status=1; \
	 (cd bench/baseline && $1 go vet ./...) || status=1; \
	 staticcheck=$$(go tool -n staticcheck) && GOGC=400 $1 "$$staticcheck" $(PACKAGES) || status=1; \
	 exit $$status

lint: format
	$(stage)
	@status=0; go vet ./... || status=1; ($(call others)) || status=1; exit $$status

format:
	$(stage)
	@files=$$(gofmt -s -l $$(go list -f '{{.Dir}}' ./...) bench/baseline); \
	 if [ -n "$$files" ]; then printf 'not gofmt -s: %s\n' $$files; exit 1; fi

suite:
	$(stage)
	go test -count=1 -p 2 -timeout $(TIMEOUT) $$(go list ./... | grep -vxF "$$(go list $(ALONE))"); others=$$?; \
	 go test -count=1 -p 1 -timeout $(TIMEOUT) $(ALONE) && exit $$others

suite-masked:
	$(stage)
	SHUNT_MASK=all go test -short -count=1 -p 2 -timeout $(TIMEOUT) $(MASKED)

fuzz: ## each fuzz target for FUZZTIME (5s)
	$(stage)
	@tools/fuzz $(FUZZTIME)

bench-once:
	$(stage)
	go test -short -run '^$$' -bench . -benchtime 1x -p 2 -timeout $(TIMEOUT) ./...

# A module of its own: the libraries we refused, beside ours (docs/dependencies.md).
BASELINE := cd bench/baseline && go

baseline-test:
	$(stage)
	$(BASELINE) test -count=1 -timeout 3m -ldflags=-checklinkname=0 ./...

soak: ## the suite at full counts, each fuzz target for ten minutes: hours
	@$(SETUP) test
	SHUNT_SOAK=1 go test -count=1 -p 1 -timeout 4h ./...
	SHUNT_MASK=all go test -count=1 -p 1 -timeout 1h ./...
	@tools/fuzz 10m

bench: ## the table of benchmarks
	@$(SETUP) test
	go test -run '^$$' -bench . -benchmem -p 1 -timeout 1h ./...

baseline: ## the table of the libraries we refused, beside ours (as root)
	$(BASELINE) run -ldflags=-checklinkname=0 .

clean: ## remove .build/ (guest images stay in .cache/)
	rm -rf $(BUILD)
