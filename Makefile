# Thin: each target is a line or two; the work is in meson, pip, pytest and tools/.
VENV   ?= .venv
PY     := $(VENV)/bin/python
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
DOORS   = tests/contract tests/conformance tests/functional tests/security
# What tests the command; by Python's road too.
COMMAND = tests/contract/test_cli.py tests/contract/test_backend.py \
          tests/conformance/test_solo5_command_line.py tests/conformance/test_launchers.py
C_FILES = $(shell git ls-files '*.c' '*.h' | grep -v '^bindings/kvm_cdef.h$$')

.DEFAULT_GOAL := help
.PHONY: help setup build check lint format types unit native fuzz run test test-intel test-intel-fast bench clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\): .*## /  make \1	/p' $(MAKEFILE_LIST)

setup: $(VENV)/.ready  ## what this machine lacks (Debian packages as root), and the Python environment

$(VENV)/.ready: pyproject.toml tools/setup
	tools/setup $(VENV)
	touch $@

build: setup  ## the native core, the guests and the package, into the environment
	@tools/build

run: build  ## boot the echo unikernel over a real TAP and ping it: on KVM, or without one in the sandbox
	tools/with_kvm --or-sandbox -- tools/run_echo

check: build lint types unit native  ## lint, types, unit and native tests: no root, no KVM, under a minute

lint:
	ruff check .
	ruff format --check .
	clang-format --dry-run -Werror $(C_FILES)

format: setup  ## lay out every source as `make check` wants it
	ruff check . --fix -q
	ruff format -q .
	clang-format -i $(C_FILES)

types:
	mypy

unit:
	pytest -q tests/unit tests/conformance/test_elftool.py

native:
	meson test -C build --no-rebuild --print-errorlogs

fuzz: setup  ## a short run of the fuzzers
	tools/fuzz 20

test: check fuzz  ## everything, behind both doors: the sandbox's here, KVM's here too or else in the box
	tools/with_net -- $(VENV)/bin/pytest -v -m 'not kvm' $(DOORS)
	TENDER_LAUNCHER=python tools/with_net -- $(VENV)/bin/pytest -q -m 'not kvm' $(COMMAND)
	tools/with_kvm -- $(VENV)/bin/pytest -v -m kvm $(DOORS)
	TENDER_KVM_CPUS=1 tools/with_kvm -- $(VENV)/bin/pytest -q -m kvm tests/conformance/test_ring.py
	pytest -v tests/box tests/package

test-intel-fast: build  ## the sixteen tests that an Intel processor is likeliest to change, on kvm_intel in Bochs: some five minutes
	tools/with_intel -- .venv/bin/pytest -v -m kvm @tests/box/intel_fast.txt

test-intel: build  ## the contract tests and echo on kvm_intel in Bochs, with nested paging (EPT) and without: an hour
	tools/with_intel -- .venv/bin/pytest -v -m kvm tests/contract tests/functional/test_echo.py
	tools/with_intel --ept 0 -- .venv/bin/pytest -v -m kvm tests/contract tests/functional/test_echo.py

bench: build  ## each goal on this machine, in minutes; beside Solo5 if TENDER_BENCH_SOLO5 names a built tree
	tender bench goals

clean:  ## what the build made (the environment stays)
	rm -rf build dist
