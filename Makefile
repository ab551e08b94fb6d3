# Thin: each target is a line or two; the work is in meson, pip, pytest and tools/.
VENV   ?= .venv
PY     := $(VENV)/bin/python
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
SUITES := $(PY) tools/suites.py $(if $(JOBS),-j $(JOBS))
EACH    = lint types unit native fuzz sandbox sandbox-python kvm kvm-one kvm-python package kvmbox intel-fast
DEBIANS = bookworm-main bookworm trixie forky

.DEFAULT_GOAL := help
.PHONY: help setup build check format run can-run test test-intel test-intel-fast wheel docs lock bench clean fuzz-long hostile-long $(EACH) $(DEBIANS:%=test-%) test-debian13

help:  ## this list
	@sed -n 's/^\([a-z0-9-]*\): .*## /  make \1	/p' $(MAKEFILE_LIST)

setup: $(VENV)/.ready-test  ## what this machine lacks for all of these (Debian packages as root), and the Python environment

$(VENV)/.ready-build: tools/requirements/build.txt tools/setup
	tools/setup $(VENV) build
	touch $@

$(VENV)/.ready-test: $(VENV)/.ready-build tools/requirements/test.txt
	tools/setup $(VENV) test
	touch $@

build: $(VENV)/.ready-build  ## the native core, the guests and the package, into the environment
	@tools/build

run: can-run build  ## boot the echo unikernel over a real TAP and ping it: on KVM, or without one in the sandbox
	tools/with_kvm --or-sandbox -- tools/run_echo

can-run: # asked before the build, which takes minutes; the test VM needs nothing of this host
	@[ "$${TENDER_KVM:-}" = kvmbox ] || tools/with_net --check || { echo "make run: or in a test VM, as any user: make setup && TENDER_KVM=kvmbox make run" >&2; exit 1; }

check: setup build  ## lint, types, unit and native tests: no root, no KVM, some minutes
	@$(SUITES) lint types unit native

test: setup build  ## every suite, each to its end, and a summary: with the sandbox, and on KVM, here or else in the test VM
	@$(SUITES) $(if $(ALSO),--also $(ALSO))

$(EACH): setup build  # one suite of tools/suites.py
	@$(SUITES) $@

format: setup  ## lay out every source as `make check` wants it
	ruff check . --fix -q
	ruff format -q .
	clang-format -i $$($(PY) tools/suites.py --c-files)

fuzz-long: setup build  ## every fuzzer for an hour
	tools/fuzz 3600

hostile-long: build  ## 100 million hostile hypercalls behind each backend: hours
	HOSTILE_CALLS=100000000 tools/with_net -- pytest -s -m 'not kvm' tests/security/test_hostile.py -k without_end
	HOSTILE_CALLS=100000000 tools/with_kvm -- pytest -s -m kvm tests/security/test_hostile.py -k without_end

test-intel-fast: intel-fast  ## the tests that an Intel processor is likeliest to change, on kvm_intel in Bochs: some five minutes

# Without the benchmarks' tests, whose figures mean nothing in Bochs, and without the one that compiles: that system has no compiler.
INTEL = --ignore-glob='tests/contract/test_bench_*' --deselect='tests/contract/test_cli.py::test_the_sdks_recipe_gives_a_unikernel_that_runs[kvm]' \
	tests/contract tests/functional/test_echo.py
test-intel: setup build  ## the contract tests and echo on kvm_intel in Bochs, with nested paging (EPT) and without: an hour
	status=0; for ept in 1 0; do tools/with_intel --ept $$ept -- .venv/bin/pytest -v -m kvm $(INTEL) || status=1; done; exit $$status

test-debian13: test-trixie  ## `make test` in a fresh Debian 13, as root; test-forky, test-bookworm, test-bookworm-main: in 14, 12, 12 without updates

$(DEBIANS:%=test-%): test-%:
	tools/chroot $* -- make test

wheel: build  ## a wheel in dist/ to hand on: manylinux, stripped, with the licences of its parts; needs Debian
	$(PY) -m pip install -q --require-hashes -r tools/requirements/wheel.txt
	@$(PY) tools/make_wheel.py

docs: setup  ## the pages as a site in build/docs, with the API's from the docstrings; a warning is an error
	$(PY) tools/pages.py --site build/pages
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --quiet --strict

lock:  ## pin what pyproject.toml's groups ask for, in tools/requirements/; with UPGRADE=1 the newest of each
	$(PY) -m pip install -q uv
	$(PY) tools/lock.py $(if $(UPGRADE),--upgrade)

bench: setup build  ## each goal on this machine, in minutes; beside Solo5 if TENDER_BENCH_SOLO5 names a built tree
	python bench goals

clean:  ## what the build made (the environment stays)
	rm -rf build dist
