# Genie. `make` lists what there is.
#
# Settings (environment or command line):
#   PYTHON      the Python that .venv is made from (>= 3.10; found by itself otherwise)
#   GENIE_VENV  where the environment goes (default .venv)
#   GENIE_CACHE downloads, cached weights, matrix environments (default ~/.cache/genie)
#   WHOLE=1     test-matrix: the whole conformance suite -> docs/conformance-versions.md
#   OPS, LIMIT  conformance: only these operators, or so many
#   SRC         conformance-hf: a source tree of transformers; MODELS="gpt2 t5": those only
#   EXAMPLE     demo: only this example
#   MINUTES, HOURS  soak: how long (default 10 minutes)
#   CALLS, SEED, ONLY  fuzz-operators: how many, which, of one operator (aten::add.Tensor)
#   QUICK=1     bench-net: five cells; CELLS="5g 1g,2ms": those only

.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.PHONY: help build env demo test test-rust test-python deny test-soak soak test-fuzz fuzz-operators test-zoo test-plugins test-libraries zoo lint conformance conformance-hf bench bench-node test-net test-matrix dpdk-deps test-dpdk test-dpdk-ci bench-dpdk clean

export GENIE_VENV ?= $(CURDIR)/.venv
export GENIE_CACHE ?= $(HOME)/.cache/genie
export HF_HUB_OFFLINE ?= 1
VENV := $(abspath $(GENIE_VENV))
PY := $(VENV)/bin/python
BUILT := PATH="$(VENV)/bin:$$PATH"
# Tells the last line of `make test` what was skipped.
PYTEST := PYTHONPATH="$(CURDIR)/tests" $(PY) -m pytest -p outcomes

help: ## this list
	@echo "Genie: PyTorch's device \`remote_accelerator\` on a host and a node of its own."
	@echo
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-14s %s\n", $$1, $$2}'

env:
	@.ci/env

build: env ## the environment .venv with genie, genie-host and genie-node (release)
	@.ci/build

demo: build ## five programs on remote_accelerator, compared with eager PyTorch (EXAMPLE=vqa)
	@$(BUILT) $(PY) frontend-py/examples/run_demo.py $(EXAMPLE)

lint: env
	@.ci/step "formatting (cargo fmt --check)" "run \`cargo fmt\`" cargo fmt --check
	@.ci/step "lints (cargo clippy)" "mend what clippy names" \
	  env GENIE_PYTHON=$(PY) PYO3_PYTHON=$(PY) cargo clippy --release --all-targets --all-features --quiet -- -D warnings

test-rust: env
	@.ci/rust-tests

test-python: build
	@.ci/step "end-to-end tests (pytest, real host and node processes)" "run one alone: .venv/bin/python -m pytest tests/e2e -k NAME" \
	  .ci/e2e
	@.ci/step "conformance, a bounded slice (the whole: make conformance)" "see the failures above; one alone: OPS=name make conformance" \
	  env $(BUILT) $(PY) tests/conformance/run.py --every 8 --grad --allow tests/conformance/known_failures.txt

zoo: build ## records some 590 models, and programs of several, and judges the recognizers on them -> docs/zoo.md
	@.ci/zoo --write docs/zoo.md --programs --append docs/zoo.md

test-zoo: build
	@.ci/step "the zoo: classes and phases of models with known answers" "one alone: .ci/zoo --case NAME" \
	  .ci/zoo --workload-min 95 --phase-min 90 --scrambled-min 85 --programs --operators-min 97 --named-min 95
	@.ci/step "the zoo's own tools" "run one alone: .venv/bin/python -m pytest tests/zoo -k NAME" \
	  env $(BUILT) $(PYTEST) tests/zoo -q --tb=short

test-net: build
	@.ci/step "the network test bed itself" "run one alone: .venv/bin/python -m pytest tests/net -k NAME" \
	  env $(BUILT) $(PYTEST) tests/net -q --tb=short

test-plugins: build
	@.ci/step "the plugin tutorial, and a plugin in another language" "run one alone: .venv/bin/python -m pytest tests/tutorial -k NAME" \
	  env $(BUILT) $(PYTEST) tests/tutorial -q --tb=short --durations=4

test-libraries: build
	@.ci/libraries

test: ## Rust unit tests, end-to-end tests, a slice of the conformance suite, lints
	@.ci/test

conformance: build ## PyTorch's OpInfo database, forward and gradients -> docs/conformance.md
	@$(BUILT) $(PY) tests/conformance/run.py --grad --write docs/conformance.md \
	  $(if $(OPS),--ops $(OPS)) $(if $(LIMIT),--limit $(LIMIT))

conformance-hf: build ## transformers' own tests of six models, CPU and device (SRC=DIR) -> docs/conformance-hf.md
	@SRC="$(SRC)" .ci/conformance-hf $(if $(MODELS),--models $(MODELS),--write docs/conformance-hf.md)

bench: build ## ratios to eager run side by side -> docs/benchmarks.md
	@$(BUILT) $(PY) tests/bench/run.py --write docs/benchmarks.md

bench-net: build ## what transports make of a link, beside kernel TCP (root, namespaces) -> docs/network.md
	@$(BUILT) $(PY) tests/net/run.py --write docs $(if $(QUICK),--quick) $(if $(CELLS),--cells $(CELLS))

bench-node: build ## what a node costs beside its work: memory, first session, idle, links -> docs/node.md
	@$(BUILT) $(PY) tests/bench/node.py --write docs/node.md

bench-plugins: build ## what a call into a plugin costs, against the same code called natively
	@.ci/bench-plugins

soak: build ## training, generation and sessions for long: what stays in memory (MINUTES=10, HOURS=8) -> docs/soak.md
	@$(BUILT) $(PY) tests/soak/run.py --minutes $(if $(HOURS),$$(($(HOURS) * 60)),$(or $(MINUTES),10)) --write docs/soak.md

test-soak: build
	@.ci/step "a slice of the soak: resident memory stays" "the whole: make soak; one alone: .venv/bin/python -m pytest tests/soak -k NAME" \
	  env $(BUILT) $(PYTEST) tests/soak -q --tb=short

fuzz-operators: build ## crafted calls of operators at a node that serves another client (CALLS=100000) -> docs/fuzz-operators.md
	@$(BUILT) $(PY) tests/fuzz/operators.py --calls $(or $(CALLS),100000) $(if $(SEED),--seed $(SEED)) \
	  $(if $(ONLY),--only $(ONLY),--write docs/fuzz-operators.md)

test-fuzz: build
	@.ci/step "a slice of the fuzzed operators: nobody else notices" "the whole: make fuzz-operators; one alone: .venv/bin/python -m pytest tests/fuzz -k NAME" \
	  env $(BUILT) $(PYTEST) tests/fuzz -q --tb=short

deny: env
	@.ci/step "licences, sources and bans of what cargo builds (cargo deny)" "mend what it names, or deny.toml" .ci/deny

test-slow: build ## the tests that `make test` leaves out (1 GiB tensors, 10^6 ops, long runs)
	@$(BUILT) $(PY) -m pytest tests/e2e -m slow -q --tb=short --durations=8

dpdk-deps: ## installs what transports/dpdk needs (apt-get, root); says what
	@.ci/dpdk deps

test-dpdk: ## builds and tests transports/dpdk: lints, conformance, zero copy, two processes
	@.ci/dpdk test

test-dpdk-ci:
	@.ci/dpdk ci

bench-dpdk: ## throughput of transports/dpdk over software devices beside kernel TCP (root)
	@.ci/dpdk bench

test-matrix: ## the front end on torch 2.2.2, 2.5.1, 2.11 and the newest, each built and smoke-tested
	@.ci/matrix

clean: ## removes .venv, the build outputs and the caches of this checkout
	rm -rf "$(VENV)" "$${CARGO_TARGET_DIR:-target}" .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
