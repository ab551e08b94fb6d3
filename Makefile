# Each target is a line or two. meson, pip, pytest and tools/ do the work.
VENV   ?= .venv
PY     := $(VENV)/bin/python
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
SUITES := $(PY) tools/suites.py $(if $(JOBS),-j $(JOBS))
CHECKS  = lint types unit native
EACH    = lint types unit native fuzz sandbox sandbox-python kvm kvm-one kvm-python package kvmbox intel-fast
DEBIANS = bookworm-main bookworm trixie forky

.DEFAULT_GOAL := help
.PHONY: help setup build check format run can-run test test-intel test-intel-fast wheel docs lock bench clean fuzz-long hostile-long $(EACH) $(DEBIANS:%=test-%) test-debian13

help:  ## print this list
	@sed -n 's/^\([a-z0-9-]*\): .*## /  make \1	/p' $(MAKEFILE_LIST)

setup: $(VENV)/.ready-test  ## install what this machine lacks for these targets (Debian packages, as root), and the Python environment

# tools/setup makes these files. It makes none while a package is missing.
$(VENV)/.ready-build: tools/requirements/build.txt tools/setup
	tools/setup $(VENV) build

$(VENV)/.ready-run: $(VENV)/.ready-build
	tools/setup $(VENV) run

$(VENV)/.ready-check: $(VENV)/.ready-build tools/requirements/test.txt
	tools/setup $(VENV) check

$(VENV)/.ready-test: $(VENV)/.ready-check
	tools/setup $(VENV) test

build: $(VENV)/.ready-build  ## build the native core, the guests and the package, and install them into the environment
	@tools/build

run: can-run $(VENV)/.ready-run build  ## boot the echo unikernel with a real TAP and ping it: with KVM, or without KVM in the sandbox
	tools/with_kvm --or-sandbox -- tools/run_echo

can-run: # checked before the build, because the build takes minutes; the test VM needs nothing from this host
	@[ "$${TENDER_KVM:-}" = kvmbox ] || tools/with_net --check || { echo "make run: or run it in the test VM, as root: make setup && TENDER_KVM=kvmbox make run" >&2; exit 1; }

check: $(VENV)/.ready-check build  ## run lint, types, unit and native tests: needs neither root nor KVM, takes some minutes
	@$(SUITES) $(CHECKS)

test: setup build  ## run every suite to its end, in the sandbox and with KVM (of this host or of the test VM), and print a summary
	@$(SUITES) $(if $(ALSO),--also $(ALSO))

$(CHECKS): $(VENV)/.ready-check build
$(filter-out $(CHECKS),$(EACH)): setup build
$(EACH):  # one suite of tools/suites.py
	@$(SUITES) $@

format: $(VENV)/.ready-check  ## format every source as `make check` requires it
	ruff check . --fix -q
	ruff format -q .
	clang-format -i $$($(PY) tools/suites.py --c-files)

fuzz-long: setup build  ## run every fuzzer for an hour
	tools/fuzz 3600

hostile-long: build  ## make 100 million hostile hypercalls on each backend: takes hours
	HOSTILE_CALLS=100000000 tools/with_net -- pytest -s -m 'not kvm' tests/security/test_hostile.py -k without_end
	HOSTILE_CALLS=100000000 tools/with_kvm -- pytest -s -m kvm tests/security/test_hostile.py -k without_end

test-intel-fast: intel-fast  ## run the tests that an Intel processor most likely affects, on kvm_intel in Bochs: about five minutes

# This leaves out the benchmarks' tests, whose figures mean nothing in Bochs, and the test that compiles: that system has no compiler.
INTEL = --ignore-glob='tests/contract/test_bench_*' --deselect='tests/contract/test_cli.py::test_the_sdks_recipe_gives_a_unikernel_that_runs[kvm]' \
	tests/contract tests/functional/test_echo.py
test-intel: setup build  ## run the contract tests and echo on kvm_intel in Bochs, with nested paging (EPT) and without: takes an hour
	status=0; for ept in 1 0; do tools/with_intel --ept $$ept -- .venv/bin/pytest -v -m kvm $(INTEL) || status=1; done; exit $$status

test-debian13: test-trixie  ## run `make test` in a new Debian 13, as root; test-forky: 14; test-bookworm: 12; test-bookworm-main: 12 without updates

$(DEBIANS:%=test-%): test-%:
	tools/chroot $* -- make test

wheel: build  ## make a wheel in dist/ for other machines: manylinux, stripped, with the licences of its parts; needs Debian
	$(PY) -m pip install -q --require-hashes -r tools/requirements/wheel.txt
	@$(PY) tools/make_wheel.py

docs: $(VENV)/.ready-check  ## build the pages as a site in build/docs, with the API from the docstrings; a warning is an error
	$(PY) tools/pages.py --site build/pages
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --quiet --strict

lock:  ## pin the packages of pyproject.toml's groups in tools/requirements/; with UPGRADE=1 the newest version of each
	$(PY) -m pip install -q uv
	$(PY) tools/lock.py $(if $(UPGRADE),--upgrade)

bench: setup build  ## measure each goal on this machine, in minutes; compared with Solo5 if TENDER_BENCH_SOLO5 names a built tree
	python bench goals

clean:  ## remove what the build made (the environment stays)
	rm -rf build dist
