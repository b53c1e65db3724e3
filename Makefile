# Everything that a person or CI runs. A Rust toolchain, make and python3 with pip are all that must be there before.

.DEFAULT_GOAL := help

# The tests' profile, so that what `make test` built serves `make dev` and the other way round.
BUILD := cargo build --locked --profile test
TARGET := $(or $(CARGO_TARGET_DIR),target)
DMQ := $(TARGET)/debug/dmq

CONTROLLERS ?= 3
STORAGE ?= 3
DATA ?= .dev
BENCH ?= metadata failover heartbeats scale idle produce replicate consume stall

.PHONY: help
help: ## Say what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: dev
dev: ## Run a whole cluster on this machine (CONTROLLERS=3 STORAGE=3 DATA=.dev ARGS=...)
	$(BUILD)
	@server=$$(python3 tools/nats-server.py) && set -x && \
	exec $(DMQ) dev --controllers $(CONTROLLERS) --storage $(STORAGE) --data $(DATA) --nats-server "$$server" $(ARGS)

.PHONY: test
test: ## Run every test that needs no Docker (ARGS='--test harness' for some)
	server=$$(python3 tools/nats-server.py) && DMQ_TEST_NATS_SERVER=$$server cargo test --locked $(ARGS)

.PHONY: simulate
simulate: ## Let the simulator look for faults until it finds one (SEED=... repeats a run)
	SEED=$(SEED) cargo test --locked --release --lib simulator::runs::on_and_on -- --ignored --nocapture

.PHONY: build
build: ## Build the binary that the figures are measured with: target/release/dmq
	cargo build --locked --release

.PHONY: bench
bench: build ## Measure all figures of docs/benchmarks.md, one after the other (BENCH='idle scale' for some, ARGS=...)
	@server=$$(python3 tools/nats-server.py) && for bench in $(BENCH); do \
		(set -x; $(TARGET)/release/dmq bench $$bench --nats-server "$$server" $(ARGS)) || missed="$$missed $$bench"; \
	done; [ -z "$$missed" ] || { echo "a target was missed, or the run failed, in:$$missed"; exit 1; }

.PHONY: compare
compare: ## Run dmq, JetStream and (with java and mvn) Apache Kafka one after another, and print the table of docs/benchmarks.md
	python3 tools/compare.py $(ARGS)

.PHONY: verify
verify: ## Check formatting, lints and documentation; write nothing
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --no-deps --document-private-items

FUZZ := batch_header records index checkpoints producer_snapshot open_log append messages \
	client_requests client_answers services metadata metadata_store
SECONDS_EACH ?= 60

.PHONY: fuzz
fuzz: ## Feed everything that reads files or messages from outside at random (SECONDS_EACH=60); needs a C++ compiler
	@command -v cargo-fuzz >/dev/null || cargo install --locked cargo-fuzz
	for target in $(FUZZ); do cargo fuzz run --sanitizer none $$target -- -max_total_time=$(SECONDS_EACH) || exit 1; done

.PHONY: fix
fix: ## Mend what formatting and lints can mend
	cargo clippy --locked --all-targets --fix --allow-dirty --allow-staged
	cargo fmt

.PHONY: compose-test
compose-test: ## Start docker-compose.yml with local images, break it, see it heal
	$(BUILD)
	tests/compose/run $(ARGS)
