# `make demo` and `make test` need nothing but python3 and this checkout.
PYTHON ?= python3
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BENCHMARKS := hashing lookup tiny_code throughput overlap

.PHONY: demo train-demo test chaos bench check native sanitize wheel protos clean

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

demo: $(READY)  ## continue real prompts: Ray, two memory shards, two reasoning workers
	$(BIN)/python -m cluster.demo

train-demo: $(READY)  ## two minutes of training on two workers and three shards, one of each killed on the way
	$(BIN)/python -m cluster.train_demo

test: $(READY)  ## every test, slow ones included, in WORKERS processes
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadscope --no-loadscope-reorder

chaos: $(READY)  ## a quarter of an hour of hostile requests and random faults under load, every row compared
	$(BIN)/python -m benchmarks.fuzz --requests 20000
	$(BIN)/python -m benchmarks.chaos --seconds 600

bench: $(READY)  ## short forms of the benchmarks that need no GPU: minutes, and figures less sure than the long forms'
	set -e; for name in $(BENCHMARKS); do echo "== $$name"; $(BIN)/python -m benchmarks.$$name --quick; done

check: $(READY)  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

native: $(READY)  ## build the native implementation of shards and clients; says what it lacks, installs nothing
	$(BIN)/python -m memory_service.native.build

sanitize: $(READY)  ## short tests of the native implementation under the sanitizers of addresses, behaviour and threads
	$(BIN)/python -m tests.memory_service.native.sanitized

wheel: $(READY)  ## sdist and wheel of engram-memory, the memory tier for other engines, in dist/
	$(BIN)/python -m build --no-isolation --outdir dist engram-memory

protos: $(READY)  ## regenerate protos/*_pb2*.py from protos/memory.proto
	$(BIN)/python -m protos.generate

clean:
	rm -rf $(VENV) build dist *.egg-info engram-memory/build engram-memory/*.egg-info
