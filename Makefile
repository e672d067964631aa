# What a user types. Everything lives in .venv, data and runs; nothing outside this folder is changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := runs/demo
DATA := data/demo
CORPUS := data_prep/demo_corpus/emoji.parquet
BUILD := $(BIN)/python -m data_prep build --source $(CORPUS) --vocab-size 4096 \
	--byte-fallback false
# Training processes: all physical cores up to 8, as a power of two, which divides every batch. The
# sample stream is the same for any number.
RANKS ?= $(shell $(BIN)/python -c "import os, psutil; cores = min(psutil.cpu_count(logical=False) \
	or 1, len(os.sched_getaffinity(0)), 8); print(1 << cores.bit_length() - 1)")
SEEDS ?= 0
COMPARISON ?= runs/comparison.json
LAW ?= benchmarks/results/law_demo
SLICE ?=
DOOR ?= all
MINUTES ?= 15
# One more than the cores, as some tests wait: for Slurm, for locks, for processes that end.
WORKERS := $(shell n=$$(getconf _NPROCESSORS_ONLN); echo $$(( n < 4 ? n + 1 : 4 )))
PARALLEL := --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder
export OMP_NUM_THREADS ?= 1

.PHONY: help setup demo data test lint soak fuzz compare law cuda-check clean

help: ## Show what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

$(VENV)/.ready: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.txt
	@touch $@

$(VENV)/.ready-dev: requirements-dev.txt $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --requirement requirements-dev.txt
	@touch $@

setup: $(VENV)/.ready ## Make the environment in .venv

data: $(DATA)/train/manifest.json $(DATA)/held_out_artist/manifest.json \
	$(DATA)/held_out_concepts/manifest.json ## Build the demo's three datasets

$(DATA)/train/manifest.json: $(CORPUS) Makefile $(VENV)/.ready
	$(BUILD) --out $(DATA)/train --overwrite --tiers 32:95,full:95 --where "split = 'train'" \
		--caption "label={caption}" --caption "keywords={caption}, {keywords}" \
		--caption "phrase={caption}, a drawing of {group}" \
		--caption "group={group}, a drawing"

$(DATA)/held_out_%/manifest.json: $(DATA)/train/manifest.json
	$(BUILD) --out $(@D) --overwrite --tiers full:95 --where "split = 'held_out_$*'" \
		--caption "label={caption}" --tokenizer $(DATA)/train/tokenizer.model

demo: data ## The main job on a laptop: shards, two-stage pretraining, evaluation, export, report
	$(BIN)/torchrun --standalone --nproc_per_node $(RANKS) -m pretrain.train \
		--config pretrain/recipes/demo.yaml --run_dir $(RUN)
	$(BIN)/python -m pretrain.export --run_dir $(RUN)
	$(BIN)/python -m pretrain.report --run_dir $(RUN)
	@echo "open $(RUN)/report.html in a browser; the figures are in $(RUN)/evaluation.json"

compare: data ## Two stages against full tokens and a CNN, for the same time; SEEDS="0 1 2" for more
	$(BIN)/python -m benchmarks.compare --seeds "[$$(echo $(SEEDS) | tr ' ' ',')]" \
		--ranks $(RANKS) --finished_run $(RUN) --out $(COMPARISON)

law: data ## Accuracy lost against tokens removed, by model size; SLICE=20 ends in 20 minutes, to go on
	$(BIN)/python -m benchmarks.inverse_scaling --config benchmarks/law_demo.yaml --out $(LAW) \
		--ranks $(RANKS) $(if $(SLICE),--slice-minutes $(SLICE))

test: $(VENV)/.ready-dev ## Run every test
	$(BIN)/python -m pytest $(PARALLEL) -m "not soak"

soak: $(VENV)/.ready-dev ## Run the slow tests too
	$(BIN)/python -m pytest $(PARALLEL)

fuzz: $(VENV)/.ready-dev ## Open mutated files, MINUTES=15 a door; DOOR=tars for one of them
	$(BIN)/python tests/fuzz/doors.py $(DOOR) --minutes $(MINUTES)

cuda-check: RANKS = 1
cuda-check: CASES =
cuda-check: BACKEND = inductor
cuda-check: $(VENV)/.ready ## Training on this machine's GPUs is correct: a table; RANKS=8 for eight
	PYTHONPATH=.:tests/support $(BIN)/torchrun --standalone --nproc_per_node $(RANKS) \
		tests/cuda_check.py --cases '$(CASES)' --backend $(BACKEND)

lint: $(VENV)/.ready-dev ## Format check, lint and type check
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

clean: ## Remove the environment, built data and runs
	rm -rf $(VENV) data runs .pytest_cache .ruff_cache .mypy_cache
