# make setup | demo | test-fast | test | test-all | docs | lint | fuzz | chaos | bench | scale | claims | flickr8k | results. Each sets up what it needs: Python 3.11, pip and make are enough.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# Much of a test is waiting for processes to start. Each of these has a Ray of its own.
TEST_PROCESSES ?= 2

# Ray, torch and BLAS on a laptop: one thread per worker process, as many processes as cores.
export OMP_NUM_THREADS ?= 1

# a target that needs photographs fails before hours of work without them
with_data = @test -d $(DATA)/flickr8k -a -d $(DATA)/tiny-imagenet32 || \
    { echo "make $@ DATA=FOLDER: the folder that has flickr8k/ and tiny-imagenet32/, not '$(DATA)'"; exit 1; }

.PHONY: setup demo test-fast test test-all docs lint fuzz chaos bench scale claims flickr8k results lock

setup: $(READY)

$(READY): requirements.lock pyproject.toml
	@echo "== setting up $(VENV) (8 GB of packages on first use, about a minute once they are downloaded)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.8
	$(BIN)/uv pip sync --compile-bytecode --python $(BIN)/python --require-hashes requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $(READY)

demo: setup
	@echo "== EDGE on procedural scenes: shards -> features -> fine-tuning -> synthesis -> captions -> report"
	$(BIN)/python jobs/edge_cc3m.py local

test: setup
	@echo "== tests"
	$(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

# everything that starts no Ray and runs no whole job, under 2 minutes
test-fast: setup
	$(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist loadfile -m "not ray and not job and not chaos and not long"

# what takes too long for every change
test-all: test fuzz chaos
	$(BIN)/python -m pytest -m long

# the documentation as a site, in site/
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

lint: setup
	@echo "== lint: ruff, mypy"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fuzz: setup
	@echo "== ten thousand hostile inputs of every format (a quarter of an hour)"
	MMDD_FUZZ_CASES=10000 $(BIN)/python -m pytest -o timeout=3600 tests/test_fuzz.py tests/test_fuzz_sources.py

chaos: setup
	@echo "== lost workers, actors, machines and drivers in every stage of every method (an hour on two cores)"
	$(BIN)/python -m pytest -m chaos
	$(BIN)/python benchmarks/chaos.py

# each prints ratios beside their targets, and records them in benchmarks/results; a missed target ends nothing
bench: setup
	@echo "== how fast each stage is, beside bare loops and what the hardware can do (an hour on two idle cores)"
	for stage in moments coresets covmatch synthesis finetune features growth start; do \
	    $(BIN)/python benchmarks/speed_$$stage.py || exit 1; done
	$(BIN)/python benchmarks/speed.py

# `make scale SCRATCH=FOLDER`: 14 GB are written to FOLDER, and deleted again
scale: setup
	@echo "== 3.3 million pairs: how time and memory grow (an hour and more on two cores)"
	$(BIN)/python benchmarks/scale.py --folder $(SCRATCH)

# `make claims CLAIMS=noise`: the table over noise; any option of benchmarks/claims.py
claims: setup
	@echo "== the claims of EDGE, CovMatch and VLCP on five worlds that nothing was tuned on (hours on two cores)"
	$(BIN)/python benchmarks/claims.py $(CLAIMS)

# `make flickr8k DATA=FOLDER`: FOLDER holds flickr8k/ and tiny-imagenet32/; what is done is not done again
flickr8k: setup
	$(with_data)
	@echo "== CovMatch against coresets on Flickr8k (hours on two cores)"
	$(BIN)/python benchmarks/flickr8k.py --photos $(DATA)/flickr8k --tiny-imagenet $(DATA)/tiny-imagenet32

# `make results DATA=FOLDER`: what is done is not done again; the tables of docs/results.md that benchmarks record
results: setup
	$(with_data)
	@echo "== procedural worlds, published protocols and photographs, then docs/results.md (a day on two cores)"
	for table in claims noise demo; do $(BIN)/python benchmarks/claims.py $$table || exit 1; done
	$(BIN)/python benchmarks/protocols.py --tiny-imagenet $(DATA)/tiny-imagenet32
	for photographs in flickr8k vlcp_tiny_imagenet; do $(BIN)/python benchmarks/$$photographs.py \
	    --photos $(DATA)/flickr8k --tiny-imagenet $(DATA)/tiny-imagenet32 || exit 1; done
	$(BIN)/python benchmarks/fill_results.py

lock: $(READY)
	$(BIN)/uv pip compile --quiet --generate-hashes --no-emit-index-url --python-version 3.11 --extra dev \
	    --custom-compile-command "make lock" pyproject.toml -o requirements.lock
