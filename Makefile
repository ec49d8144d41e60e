# `make demo` and `make test` do all the set-up that they need; see README.md.
CARGO ?= cargo
BENCHES := collection pipeline query encoder tokenizer preprocess standing
BINARY := $(or $(CARGO_TARGET_DIR),target)/release/feedlens

.PHONY: help setup build demo test lint chaos fuzz fuzz-api bench bench-peers services services-stop

help:
	@echo "make demo [ONCE=1] [RATE=n]   try it: everything in one process, then the page on http://127.0.0.1:8080"
	@echo "make build                    $(BINARY)"
	@echo "make test                     all tests, on a real Kafka too"
	@echo "make chaos SEED=n MINUTES=m [STORE=edge|qdrant]   faults of all kinds under load, then everything is compared"
	@echo "make fuzz [TARGET=name] [MINUTES=n]   hostile bytes for what reads bytes of strangers (wants cargo-fuzz and nightly)"
	@echo "make fuzz-api [EXAMPLES=n]    thousands of requests made of the API's own description, at the running demo"
	@echo "make lint                     formatting, clippy, scripts, rules, manifests, Dockerfile, compose file, workflows"
	@echo "make bench [BENCHES=name]     throughput of the pipe beside its bare parts, and of parts beside their peers"
	@echo "make bench-peers [TORCH=1]    the Python packages that benches compare with; PyTorch's take gigabytes"
	@echo "make services                 a real Kafka (and Qdrant, where there is one) for the integration tests"

setup:
	@scripts/setup.sh

build: setup
	@# With a bench beside it, the dependencies get the features that the tests need too, and are compiled once for both.
	@$(CARGO) build --release --locked --bin feedlens --bench pipeline

demo: build
	@$(BINARY) demo $(if $(ONCE),--once) $(if $(RATE),--rate $(RATE))

test:
	@scripts/setup.sh tests
	@scripts/test.sh

chaos: export SEED ?= 1
chaos: export MINUTES ?= 2
chaos: export STORE ?=
chaos: setup
	@$(CARGO) test --release --locked --test chaos

lint:
	@scripts/setup.sh lint
	@scripts/lint.sh

fuzz: export MINUTES ?= 1
fuzz:
	@scripts/fuzz.sh

fuzz-api: export EXAMPLES ?= 1500
fuzz-api: build
	@BINARY=$(BINARY) scripts/fuzz_api.sh

bench: setup
	@$(CARGO) bench --locked $(addprefix --bench ,$(BENCHES))

bench-peers:
	@scripts/bench_peers.sh $(if $(TORCH),torch)

services:
	@scripts/setup.sh tests
	@scripts/services.sh start

services-stop:
	@scripts/services.sh stop
