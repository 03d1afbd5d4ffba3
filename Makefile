# `make` shows what there is. Everything is made inside the repository: environments in .venv*, results in build/.
#
#   make test PYTHON=python3.12            another Python
#   make test TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"   another PyTorch
#   make test ARGS="-k digits -x"          some of the tests

PYTHON ?= python3
TORCH ?= torch==2.13.0
ARGS ?=

DIGITS := examples/digits
USER_ENV := .venv
DEV_ENV := .venv-dev
FRAMEWORKS_ENV := .venv-frameworks
DEEPSPEED_ENV := .venv-deepspeed
TRAINERS_ENV := .venv-trainers
NUMPY1_ENV := .venv-numpy1
TENSORFLOW_ENV := .venv-tensorflow
KERAS3_ENV := .venv-keras3
TRAINERS := composer coqui_trainer eole espnet fastai fsdp2 marian monai nequip olmo_core open_clip \
	sentence_transformers torchtitan ultralytics
SMOKE := build/smoke
KERNEL := ckpttool/engine/kernels/_kernel.so

.DEFAULT_GOAL := help
.PHONY: help demo test test-frameworks test-trainers test-deepspeed test-numpy1 test-tensorflow test-keras3 lint wheel-smoke kernel bench figures clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(USER_ENV)/made  ## Average the last 5 checkpoints of a real small run, and see what it brought
	@mkdir -p build
	$(USER_ENV)/bin/ckpttool average $(DIGITS)/run --last 5 -o build/averaged.safetensors --force
	$(USER_ENV)/bin/python $(DIGITS)/evaluate.py $(DIGITS)/run/checkpoint-2000.pt build/averaged.safetensors

test: $(DEV_ENV)/made $(KERNEL)  ## Run the whole test suite
	$(DEV_ENV)/bin/python -m pytest $(ARGS)

test-frameworks: $(FRAMEWORKS_ENV)/made  ## Let training frameworks load the results (downloads them, takes minutes)
	$(FRAMEWORKS_ENV)/bin/python -m pytest tests/frameworks \
		--expect accelerate,directories,ema_pytorch,ignite,joeynmt,lightning,mmengine,schedulers,timm $(ARGS)

# Each in a process of its own, since some change PyTorch's settings for all.
test-trainers: $(TRAINERS_ENV)/made  ## The same for Composer, ESPnet, Eole, fastai, OLMo-core, torchtitan, Ultralytics, ...
	@failed=0; for name in $(TRAINERS); do \
		$(TRAINERS_ENV)/bin/python -m pytest -q tests/frameworks/test_$$name.py --expect $$name $(ARGS) || failed=1; \
	done; exit $$failed

test-deepspeed: $(DEEPSPEED_ENV)/made  ## The same for DeepSpeed, which trains on CPU for it (needs a C++ compiler)
	PATH=$(abspath $(DEEPSPEED_ENV))/bin:$$PATH $(DEEPSPEED_ENV)/bin/python -m pytest \
		tests/frameworks/test_deepspeed.py --expect deepspeed $(ARGS)

test-numpy1: $(NUMPY1_ENV)/made  ## The same for fairseq, OpenNMT-py and Sockeye (PYTHON=python3.10, and a C++ compiler)
	$(NUMPY1_ENV)/bin/python -m pytest tests/frameworks --expect fairseq,opennmt_py,sockeye $(ARGS)

test-tensorflow: $(TENSORFLOW_ENV)/made  ## The same for TensorFlow and OpenNMT-tf (PYTHON=python3.11 or older)
	$(TENSORFLOW_ENV)/bin/python -m pytest tests/test_tensorflow_frameworks.py $(ARGS)

test-keras3: $(KERAS3_ENV)/made  ## The same for the newest TensorFlow, whose Keras is another one
	$(KERAS3_ENV)/bin/python -m pytest tests/test_tensorflow_frameworks.py $(ARGS)
	$(KERAS3_ENV)/bin/python -m pytest tests/frameworks/test_tensorflow.py --expect tensorflow $(ARGS)

lint: $(DEV_ENV)/made  ## Check style, format and types
	$(DEV_ENV)/bin/ruff check .
	$(DEV_ENV)/bin/ruff format --check .
	$(DEV_ENV)/bin/mypy

wheel-smoke: $(DEV_ENV)/made  ## Build both wheels, and use each in an environment with nothing else
	rm -rf dist $(SMOKE)
	CKPTTOOL_KERNEL=yes $(DEV_ENV)/bin/python -m build --outdir dist
	CC=false $(DEV_ENV)/bin/python -m build --wheel --outdir dist
	mkdir -p $(SMOKE)/compiled $(SMOKE)/pure
	for kind in compiled pure; do $(PYTHON) -m venv $(SMOKE)/$$kind/env || exit 1; done
	$(SMOKE)/compiled/env/bin/python -m pip install --quiet $$(ls dist/*.whl | grep -v none-any)
	CC=false PATH=/nonexistent $(abspath $(SMOKE))/pure/env/bin/python -m pip install --quiet dist/*none-any.whl
	cd $(SMOKE)/compiled && CKPTTOOL_KERNEL=yes env/bin/ckpttool --version -v
	cd $(SMOKE)/pure && env/bin/ckpttool --version -v | grep -x 'kernel: numpy'
	for kind in compiled pure; do ( cd $(SMOKE)/$$kind && env/bin/ckpttool --help > /dev/null && \
		env/bin/ckpttool average $(abspath $(DIGITS)/run) --last 5 -o averaged.safetensors ) || exit 1; done
	cmp $(SMOKE)/compiled/averaged.safetensors $(SMOKE)/pure/averaged.safetensors

kernel: $(KERNEL)  ## Build the compiled kernel in place, for work on its sources

# Without a compiler, numpy computes.
$(KERNEL): hatch_build.py $(wildcard ckpttool/*/*.c ckpttool/*/*/*.[ch])
	-$(PYTHON) hatch_build.py

bench: $(DEV_ENV)/made  ## Measure speed and memory (makes its data in benchmarks/data)
	$(DEV_ENV)/bin/python benchmarks/average.py $(ARGS)

figures: $(DEV_ENV)/made  ## Make the pictures of the documentation again
	set -e; for script in $(wildcard docs/make_*.py); do $(DEV_ENV)/bin/python $$script; done

clean:  ## Remove everything that make has made
	rm -rf $(USER_ENV) $(DEV_ENV) $(FRAMEWORKS_ENV) $(DEEPSPEED_ENV) $(TRAINERS_ENV) $(NUMPY1_ENV) $(TENSORFLOW_ENV) \
		$(KERAS3_ENV) build dist $(KERNEL) ckpttool/checksums/_crc.so

# An environment is made anew when pyproject.toml has changed. Its last step leaves the stamp, so half an environment
# never counts. The package is installed as a link to the sources: a change in them needs no new environment.

$(USER_ENV)/made: pyproject.toml
	$(PYTHON) -m venv --clear $(USER_ENV)
	$(USER_ENV)/bin/python -m pip install --quiet --editable .
	touch $@

# Dependency groups (PEP 735) need pip 25.1, and Python 3.11 brings 23.2. PyTorch comes in a step of its own, so that
# an --index-url in TORCH concerns PyTorch alone.
$(DEV_ENV)/made: pyproject.toml
	$(PYTHON) -m venv --clear $(DEV_ENV)
	$(DEV_ENV)/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(DEV_ENV)/bin/python -m pip install --quiet $(TORCH)
	$(DEV_ENV)/bin/python -m pip install --quiet --editable '.[plot,tensorflow]' --group dev
	touch $@

# timm, SpeechBrain and Sockeye come without their dependencies, of which the tests need nothing: they would bring a
# torchvision or torchaudio for another PyTorch, or ask for an older PyTorch.
$(FRAMEWORKS_ENV)/made: pyproject.toml
	$(PYTHON) -m venv --clear $(FRAMEWORKS_ENV)
	$(FRAMEWORKS_ENV)/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(FRAMEWORKS_ENV)/bin/python -m pip install --quiet $(TORCH)
	$(FRAMEWORKS_ENV)/bin/python -m pip install --quiet --editable . --group frameworks
	$(FRAMEWORKS_ENV)/bin/python -m pip install --quiet --no-deps timm speechbrain
	touch $@

# Frameworks whose requirements contradict each other's, or this PyTorch: what their trainers and savers need is named
# here, and they come without the rest. torchvision has no build for every PyTorch, and a stand-in does.
$(TRAINERS_ENV)/made: pyproject.toml
	$(PYTHON) -m venv --clear $(TRAINERS_ENV)
	$(TRAINERS_ENV)/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(TRAINERS_ENV)/bin/python -m pip install --quiet $(TORCH)
	$(TRAINERS_ENV)/bin/python -m pip install --quiet --editable . --group trainers
	$(TRAINERS_ENV)/bin/python -m pip install --quiet --no-deps mosaicml mosaicml-cli torch_optimizer pytorch_ranger \
		open_clip_torch timm ultralytics ultralytics-thop fastai fasttransform fastdownload trainer eole torchtitan espnet
	touch $@

# By itself: other frameworks use a DeepSpeed that they find. Its setup imports the PyTorch that is there.
$(DEEPSPEED_ENV)/made: pyproject.toml
	$(PYTHON) -m venv --clear $(DEEPSPEED_ENV)
	$(DEEPSPEED_ENV)/bin/python -m pip install --quiet $(TORCH)
	$(DEEPSPEED_ENV)/bin/python -m pip install --quiet --editable . numpy pytest hypothesis transformers accelerate \
		setuptools wheel py-cpuinfo ninja
	DS_BUILD_OPS=0 $(DEEPSPEED_ENV)/bin/python -m pip install --quiet --no-build-isolation deepspeed
	touch $@

# The omegaconf that fairseq asks for has metadata that pip 24.1 and later refuse.
$(NUMPY1_ENV)/made: pyproject.toml
	$(PYTHON) -m venv --clear $(NUMPY1_ENV)
	$(NUMPY1_ENV)/bin/python -m pip install --quiet 'pip<24.1'
	$(NUMPY1_ENV)/bin/python -m pip install --quiet $(TORCH)
	$(NUMPY1_ENV)/bin/python -m pip install --quiet --editable . 'numpy<2' pytest hypothesis \
		OpenNMT-py==3.0.4 "fairseq==0.12.2; python_version < '3.11'"
	$(NUMPY1_ENV)/bin/python -m pip install --quiet --no-deps sockeye==3.1.34
	touch $@

# TensorFlow 2.13 wants an older NumPy than ckpttool asks for. What the test needs of it works with that one.
$(TENSORFLOW_ENV)/made: pyproject.toml
	$(PYTHON) -m venv --clear $(TENSORFLOW_ENV)
	$(TENSORFLOW_ENV)/bin/python -m pip install --quiet tensorflow-cpu==2.13.1 tensorflow-addons==0.21.0 \
		OpenNMT-tf==2.32.0 pytest hypothesis click rich ml-dtypes safetensors PyYAML google-crc32c
	$(TENSORFLOW_ENV)/bin/python -m pip install --quiet --no-deps --editable .
	touch $@

$(KERAS3_ENV)/made: pyproject.toml
	$(PYTHON) -m venv --clear $(KERAS3_ENV)
	$(KERAS3_ENV)/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(KERAS3_ENV)/bin/python -m pip install --quiet $(TORCH)
	$(KERAS3_ENV)/bin/python -m pip install --quiet --editable '.[tensorflow]' --group test 'tensorflow-cpu>=2.16'
	touch $@
