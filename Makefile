# Every target makes the environment first: a fresh machine needs only make, and python3 >= 3.11 with its venv module.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
PORT ?= 8080
GRPC_PORT ?= 8081
HOST ?= 127.0.0.1
E2E_TESTS ?= tests/e2e -m "not full"
SEED ?= 1
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
MODELS := --model flux=checkpoints/shapes-flux --model qwen-vl=checkpoints/shapes-qwen-vl
# one torch thread per xdist worker: more would compete for two cores
PYTEST := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -n 2 --dist loadfile

# the quick tests that find most faults: the core, the protocols, the pages, settings and metrics
FAST_TESTS := tests/serving tests/protocol tests/test_docs.py tests/test_settings.py tests/test_metrics.py

# tests that start whole server processes, several seconds each
PROCESS_TESTS := tests/cluster/test_serving_goes_on.py tests/product/test_warm.py tests/product/test_profile.py \
  tests/product/test_shutdown.py tests/product/test_refused_starts.py tests/product/test_hostile.py tests/cli/test_interrupts.py \
  tests/activator/test_command.py tests/product/test_files_entered.py

.PHONY: help setup demo serve check test test-newest test-processes test-benchmarks faults test-observe test-load load soak test-clients test-page page-pictures fuzz fuzz-quick lock-fuzz lock-page lock-storage site lock-site test-deploy cluster-tools manifests lint format type docs dashboard-pictures bench-cpu bench-gpu bench-gpu-qwen-vl checkpoints evaluate-checkpoints evaluate-boxes image sbom release e2e e2e-full e2e-cluster lock lock-clients hashes clean

help: ## this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /  make \1\t/' | expand -t 30

setup: $(STAMP) ## the environment in .venv: names and versions of constraints.txt, files of hashes.txt

$(STAMP): pyproject.toml constraints.txt hashes.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 11) <= v[:2] <= (3, 13) else f"Python 3.11 to 3.13 is needed, {sys.executable} is {v[0]}.{v[1]}; try: make PYTHON=python3.12")'
	@echo "making $(VENV): 6 GB, most of them torch with CUDA's libraries; some minutes, in which nothing is printed"
	$(PYTHON) -m venv $(VENV)
	@# uv's own entry: pip ignores hashes of constraints, but not of requirements
	sed -n '/^uv==/,/[^\]$$/p' hashes.txt >$(VENV)/uv.txt
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --require-hashes -r $(VENV)/uv.txt
	@# uv stops where its cache can't be written: for a user whose HOME is missing or read-only
	@home=~; cache="$${UV_CACHE_DIR:-$${XDG_CACHE_HOME:-$$home/.cache}/uv}"; \
	  mkdir -p "$$cache" 2>/dev/null && test -w "$$cache" || \
	  { echo "$$cache can't be written: nothing is kept of the downloads"; export UV_NO_CACHE=1; }; \
	  set -x; $(BIN)/uv pip install -q --python $(BIN)/python -c hashes.txt -b hashes.txt -e '.[dev,deploy]'
	@# compile the bytecode of a server's imports: without it the first start takes twice as long
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -c 'import predictors.protocol.server, predictors.diffusion.predictor, predictors.models.qwen2_5_vl.model'
	@touch $@

demo: $(STAMP) ## serve both models, draw two prompts, caption the drawings, stop
	@$(BIN)/python -m predictors demo

serve: $(STAMP) ## keep both models up on PORT (8080) and GRPC_PORT (8081), until Ctrl-C
	@mkdir -p out
	@HOST=$(HOST) PORT=$(PORT) GRPC_PORT=$(GRPC_PORT) exec $(BIN)/python -m predictors serve $(MODELS)

check: lint type ## before a commit: lint, types and the fast tests; at most 90 s on a kept environment
	$(PYTEST) -q $(FAST_TESTS)

test: $(STAMP) ## every test of the product, warnings are errors
	$(PYTEST) $(addprefix --ignore=,$(PROCESS_TESTS)) --ignore=tests/benchmarks --ignore=tests/checkpoints --ignore=tests/observe --ignore=tests/load --ignore=tests/deploy --ignore=tests/e2e --ignore=tests/clients --ignore=tests/page --ignore=tests/examples --ignore=tests/site --ignore=tests/faults/processes

test-processes: $(STAMP) ## servers from start to end: warm-up, profile, refused starts, hostile bodies, shutdown, in a pod
	$(PYTEST) $(PROCESS_TESTS)

test-benchmarks: $(STAMP) ## the benchmarks' and the training's own code, with small models
	$(PYTEST) tests/benchmarks tests/checkpoints

test-observe: $(STAMP) ## rules against a real Prometheus and promtool, where they are installed
	$(PYTEST) tests/observe

# torch, Triton, transformers and the rest as new as pyproject.toml allows: tells what an upgrade would break
NEWEST := out/newest
test-newest: $(STAMP) ## models, engines, compute and workers with the newest torch, Triton and transformers that PyPI has, on the CPU; decides nothing
	$(BIN)/uv venv -q --clear --python $(BIN)/python $(NEWEST)
	$(BIN)/uv pip install -q --python $(NEWEST)/bin/python -r pyproject.toml --extra dev
	$(BIN)/uv pip list -q --python $(NEWEST)/bin/python | grep -E '^(torch|torchvision|triton|transformers|diffusers|kserve) '
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(NEWEST)/bin/python -m pytest -q -n 2 --dist loadfile tests/models tests/chat tests/diffusion tests/compute tests/workers

# the clients have an environment of their own, made of what PyPI has
CLIENTS := out/clients
$(CLIENTS)/.ready: tests/clients/requirements.txt $(STAMP)
	$(BIN)/uv venv -q --clear --python $(BIN)/python $(CLIENTS)
	$(BIN)/uv pip install -q --python $(CLIENTS)/bin/python -r $<
	@touch $@
# it asks for older releases of what the others use
INSTRUCTOR := out/clients-instructor
$(INSTRUCTOR)/.ready: tests/clients/instructor-requirements.txt $(STAMP)
	$(BIN)/uv venv -q --clear --python $(BIN)/python $(INSTRUCTOR)
	$(BIN)/uv pip install -q --python $(INSTRUCTOR)/bin/python -r $<
	@touch $@

# a generator of clients from OpenAPI, and mypy for what it makes
OPENAPI_CLIENT := out/clients-openapi
$(OPENAPI_CLIENT)/.ready: tests/clients/openapi-requirements.txt $(STAMP)
	$(BIN)/uv venv -q --clear --python $(BIN)/python $(OPENAPI_CLIENT)
	$(BIN)/uv pip install -q --python $(OPENAPI_CLIENT)/bin/python -r $<
	@touch $@

faults: $(STAMP) ## faults of whole processes with real models, and every combination of those in `make test`: some minutes
	ALL_FAULTS=1 OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -q tests/faults

test-load: $(STAMP) ## the load generator, 1,500 requests and 3 SIGTERMs: the small part of `make load`
	TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -q tests/load

load: $(STAMP) ## load curves, greedy callers, memory, 20 SIGTERMs, into benchmarks/results/load-*.json: 16 minutes of two quiet cores
	TOKENIZERS_PARALLELISM=false $(BIN)/python -m tests.load

SOAK_MINUTES ?= 45
soak: $(STAMP) ## the same load for SOAK_MINUTES (45): memory, file descriptors, threads, into out/load/soak
	TOKENIZERS_PARALLELISM=false $(BIN)/python -m tests.load --only flat --minutes $(SOAK_MINUTES) --out out/load/soak

test-clients: $(CLIENTS)/.ready $(INSTRUCTOR)/.ready $(OPENAPI_CLIENT)/.ready ## LangChain, LiteLLM, OpenAI's agents, pydantic-ai, tritonclient and others, from PyPI, against the real server; the examples of the pages
	CLIENTS_PYTHON=$(abspath $(CLIENTS))/bin/python INSTRUCTOR_PYTHON=$(abspath $(INSTRUCTOR))/bin/python OPENAPI_PYTHON=$(abspath $(OPENAPI_CLIENT))/bin/python OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/clients tests/examples

# Playwright drives Debian's Chromium, axe-core judges the pages, and TypeScript's compiler reads JavaScript
PAGE := out/page
AXE := axe-core-4.14.1
TYPESCRIPT := typescript-5.9.3
$(PAGE)/.ready: tests/page/requirements.txt tests/page/npm.sha512 $(STAMP)
	rm -rf $(PAGE)
	$(BIN)/uv pip install -q --python $(BIN)/python --no-deps --target $(PAGE)/site -r $<
	cd $(PAGE) && npm pack --silent $(subst axe-core-,axe-core@,$(AXE)) $(subst typescript-,typescript@,$(TYPESCRIPT)) >/dev/null
	cd $(PAGE) && sha512sum --quiet -c $(abspath tests/page/npm.sha512) && tar xzf $(AXE).tgz package/axe.min.js
	mkdir $(PAGE)/typescript && tar xzf $(PAGE)/$(TYPESCRIPT).tgz -C $(PAGE)/typescript --strip-components 1 package/package.json package/lib
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null; }
	@touch $@

TEST_PAGE = PYTHONPATH=$(PAGE)/site AXE_CORE=$(abspath $(PAGE))/package/axe.min.js TYPESCRIPT=$(abspath $(PAGE))/typescript/lib/tsc.js \
  OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/page
test-page: $(PAGE)/.ready ## the playground and /docs in Chromium: draw, edit, ask, cancel, refusals, keys, phone, keyboard, axe-core; types of all JavaScript
	$(TEST_PAGE)

page-pictures: $(PAGE)/.ready ## the same, and draw docs/pictures/page-*.png
	PAGE_PICTURES=docs/pictures $(TEST_PAGE)

lock-page: $(STAMP) ## resolve tests/page/requirements.txt again: names and versions only
	$(BIN)/uv pip compile tests/page/names.txt --universal --python-version 3.11 \
	  --no-header --no-annotate --no-emit-index-url --no-emit-find-links --upgrade -q -o tests/page/requirements.txt

lock-clients: $(STAMP) ## resolve tests/clients/*requirements.txt again: names and versions only
	$(BIN)/uv pip compile tests/clients/names.txt --universal --python-version 3.11 \
	  --no-header --no-annotate --no-emit-index-url --no-emit-find-links --upgrade -q -o tests/clients/requirements.txt
	$(BIN)/uv pip compile tests/clients/instructor-names.txt --universal --python-version 3.11 \
	  --no-header --no-annotate --no-emit-index-url --no-emit-find-links --upgrade -q -o tests/clients/instructor-requirements.txt
	$(BIN)/uv pip compile tests/clients/openapi-names.txt --universal --python-version 3.11 \
	  --no-header --no-annotate --no-emit-index-url --no-emit-find-links --upgrade -q -o tests/clients/openapi-requirements.txt

# schemathesis has an environment of its own: its packages are of no use to anything else here
FUZZ := out/fuzz
$(FUZZ)/.ready: tests/fuzz/requirements.txt $(STAMP)
	$(BIN)/uv venv -q --clear --python $(BIN)/python $(FUZZ)
	$(BIN)/uv pip install -q --python $(FUZZ)/bin/python -r $<
	@touch $@

fuzz: $(FUZZ)/.ready ## every fuzzer for 20 minutes, into benchmarks/results/fuzz.json; SEED=2 for other cases
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz full --seed $(SEED)

fuzz-quick: $(FUZZ)/.ready ## CI's part of `make fuzz`: two minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz quick --seed $(SEED)

lock-fuzz: $(STAMP) ## resolve tests/fuzz/requirements.txt again: names and versions only
	echo schemathesis | $(BIN)/uv pip compile - --universal --python-version 3.11 \
	  --no-header --no-annotate --no-emit-index-url --no-emit-find-links --upgrade -q -o tests/fuzz/requirements.txt

# the site's generator has an environment of its own too
SITE := out/site-env
$(SITE)/.ready: tests/site/requirements.txt $(STAMP)
	$(BIN)/uv venv -q --clear --python $(BIN)/python $(SITE)
	$(BIN)/uv pip install -q --python $(SITE)/bin/python -r $<
	@touch $@

site: $(SITE)/.ready ## the documentation as a site in out/site/html; links, anchors and what pages load are checked
	$(BIN)/python -m tools.site
	cd out/site && $(abspath $(SITE))/bin/zensical build --strict
	$(BIN)/python -m pytest -q tests/site

lock-storage: $(STAMP) ## resolve the object store of the e2e suite again: names and versions only
	$(BIN)/uv pip compile tests/e2e/image/storage/names.txt --python-version 3.11 \
	  --no-header --no-annotate --no-emit-index-url --no-emit-find-links --upgrade -q -o tests/e2e/image/storage/requirements.txt

lock-site: $(STAMP) ## resolve tests/site/requirements.txt again: names and versions only
	$(BIN)/uv pip compile tests/site/names.txt --universal --python-version 3.11 \
	  --no-header --no-annotate --no-emit-index-url --no-emit-find-links --upgrade -q -o tests/site/requirements.txt

test-deploy: $(STAMP) cluster-tools ## chart, manifests and Dockerfile, without a cluster
	$(PYTEST) tests/deploy

# helm and kubectl: those on PATH, else built from Go modules into the machine's cache
cluster-tools: $(STAMP)
	@$(BIN)/python -c 'from tests.deploy.chart import binary; binary("helm"), binary("kubectl")' 2>/dev/null || \
	  $(BIN)/python -m tests.e2e.cluster build --only helm,kube

manifests: $(STAMP) cluster-tools ## write manifests/ from the chart, a folder per profile
	$(BIN)/python -m tools.manifests

e2e-cluster: $(STAMP) ## a real Kubernetes with KServe and KEDA on this machine: build what is missing, bring it up (root)
	$(BIN)/python -m tests.e2e.cluster build
	$(BIN)/python -m tests.e2e.cluster up

e2e: $(STAMP) ## all steps on that Kubernetes: build, images, up, tests/e2e, down; logs in out/e2e (root)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.e2e.cluster suite -- $(E2E_TESTS)

e2e-full: E2E_TESTS = tests/e2e
e2e-full: e2e ## the same with the tests for which every commit has no time: marked `full`, run at night

lint: $(STAMP) ## ruff, formatting, import contracts, size rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m pytest -q tests/test_architecture.py

format: $(STAMP) ## fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

type: $(STAMP) ## mypy --strict
	$(BIN)/mypy

docs: $(STAMP) ## write docs/configuration.md, docs/metrics.md, alerts, dashboard, the chart's README and settings schema
	$(BIN)/python -m tools.docs

dashboard-pictures: $(STAMP) ## draw docs/pictures from two minutes of a real Prometheus under load
	OMP_NUM_THREADS=1 $(BIN)/python -m tools.dashboard_pictures

bench-cpu: $(STAMP) ## measure the overhead of serving on the CPU, into benchmarks/results/cpu.json
	$(BIN)/python -m benchmarks.serving.cpu

bench-gpu: $(STAMP) ## FLUX beside diffusers on this machine's GPU, and its tables in the pages
	$(BIN)/python -m benchmarks.flux
	$(BIN)/python -m benchmarks.journal

bench-gpu-qwen-vl: $(STAMP) ## Qwen2.5-VL, 3B and 7B, through the server beside transformers, and the tables in the pages
	$(BIN)/python -m benchmarks.qwen_vl
	$(BIN)/python -m benchmarks.qwen_vl --size 7b
	$(BIN)/python -m benchmarks.journal

checkpoints: $(STAMP) ## train both embedded checkpoints again (fixed seeds)
	$(BIN)/python -m checkpoints.training

evaluate-checkpoints: $(STAMP) ## draw and describe the held-out scenes, judged from the pixels
	$(BIN)/python -m checkpoints.training evaluate

evaluate-boxes: $(STAMP) ## boxes of 300 held-out scenes at three sizes, by a server that runs on PORT
	$(BIN)/python -m checkpoints.training.evaluate_boxes --url http://$(HOST):$(PORT)

# the image: `make image BASE_IMAGE=... TARGET=demo TAG=...`; docs/deploy.md has the air gap
BASE_IMAGE ?= python:3.12-slim
TARGET ?= server
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
TAG ?= vision-predictors:$(VERSION)
REVISION = $(shell git describe --always --dirty --abbrev=40 --exclude="*" 2>/dev/null || echo unknown)
# the extras that the Dockerfile installs
EXTRAS := $(shell sed -n 's/^ARG EXTRAS="\(.*\)"/\1/p' Dockerfile)

image: ## the product's image, by docker, podman or buildah, the first that works here
	@for tool in docker podman buildah; do \
	  command -v $$tool >/dev/null && $$tool info >/dev/null 2>&1 || continue; \
	  layers=; [ $$tool = docker ] || layers=--layers; \
	  set -x; DOCKER_BUILDKIT=1 exec $$tool build $$layers --target $(TARGET) --tag $(TAG) \
	    --build-arg BASE_IMAGE=$(BASE_IMAGE) --build-arg VERSION=$(VERSION) \
	    --build-arg REVISION=$(REVISION) $(IMAGE_FLAGS) .; \
	done; echo "none of docker, podman and buildah works here" >&2; exit 1

sbom: $(STAMP) ## out/sbom.json: CycloneDX, the Python distributions that the image installs; out/sbom.txt: names and versions
	@mkdir -p out
	$(BIN)/uv venv -q --clear out/sbom-env
	$(BIN)/uv pip install -q --python out/sbom-env/bin/python -c hashes.txt -r pyproject.toml $(EXTRAS:%=--extra %)
	$(BIN)/cyclonedx-py environment --pyproject pyproject.toml --mc-type application \
	  --output-reproducible --output-format JSON --output-file out/sbom.json out/sbom-env/bin/python
	@$(BIN)/python -c 'import json, sys; parts = json.load(sys.stdin)["components"]; \
	  print(*sorted(part["name"].lower() + "==" + part["version"] for part in parts), sep="\n")' <out/sbom.json >out/sbom.txt
	@rm -rf out/sbom-env

release: $(STAMP) cluster-tools sbom ## chart, SBOM, provenance, checksums and, where a builder works, the image, into out/release; RELEASE="--no-image --url ..."
	$(BIN)/python -m tools.release $(RELEASE)

RESOLVE = $(BIN)/uv pip compile pyproject.toml --extra dev --extra deploy --extra c2pa --extra fa3 --extra films --extra gpu --extra otel --universal \
  --python-version 3.11 --no-header --no-annotate --no-emit-index-url --no-emit-find-links -q

lock: $(STAMP) ## resolve constraints.txt again (names and versions only), then hashes.txt and sbom.txt for it
	$(RESOLVE) --upgrade -o constraints.txt
	$(MAKE) hashes
	$(MAKE) sbom
	cp out/sbom.txt sbom.txt

hashes: $(STAMP) ## hashes.txt: the sha256 of every file that the index has of constraints.txt
	$(RESOLVE) -c constraints.txt --generate-hashes -o hashes.txt

clean: ## remove the environment and all build outputs
	rm -rf $(VENV) build dist out *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
