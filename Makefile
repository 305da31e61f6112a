# The README's commands, from a bare checkout: Python 3.11+ and make are all they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
MINUTES ?= 3
STORE ?= rclone
QUICK := not slow and not gpu and not bench
# three processes keep two cores busy, since the processes of the chaos run mostly wait
PROCESSES ?= 3
PARALLEL = --numprocesses $(PROCESSES) --dist worksteal --durations 25 --durations-min 2
# what builds an image where there is neither Docker nor a registry
BUILDERS := buildah debootstrap debian-archive-keyring
# what checks the dashboard's JavaScript: a node and an npm that pip installs
NODE := $(BIN)/node
JAVASCRIPT := .ci/javascript
PRETTIER := $(NODE) $(JAVASCRIPT)/node_modules/prettier/bin/prettier.cjs --config $(JAVASCRIPT)/prettier.json --log-level warn
DASHBOARD := producer/latentfarm/server/dashboard
SUDO := $(if $(filter 0,$(shell id -u)),,sudo --preserve-env)
BENCHMARKS := mini mini_adapters submission first_image ledger fair_share fetch throughput mixed families start memory embeddings loras image_to_image drafts images parking interactive draft_previews live_preview server dashboard

.PHONY: demo install test test-slow test-chaos test-images test-s3 unit check check-javascript format bench docs screenshots chaos clean

demo: $(VENV)/.run  ## render examples/prompts.txt into out/
	$(BIN)/latentfarm render examples/prompts.txt --output out --guidance-scale 4

# what check and test need; with --jobs, pip, npm and apt-get run at the same time
install: $(VENV)/.dev $(VENV)/.javascript $(VENV)/.tools $(VENV)/.compiled $(VENV)/peft

test: install  ## every test that needs no GPU and no model of full size, 105 s of chaos among them
	$(BIN)/python -m pytest -m "$(QUICK)" $(PARALLEL)

unit: PROCESSES = auto
unit: $(VENV)/.dev $(VENV)/.tools $(VENV)/peft  ## the tests that need no server and no process of ours
	$(BIN)/python -m pytest -m "unit and $(QUICK)" $(PARALLEL) tests/unit

test-slow: install  ## what `make test` leaves out: long tests, and variations of others; about an hour
	$(BIN)/python -m pytest -m "slow and not gpu and not bench" $(PARALLEL)

test-chaos: $(VENV)/.dev  ## three and a half minutes of chaos
	$(BIN)/python -m pytest -k "210" tests/chaos/test_chaos.py

test-s3: $(VENV)/.chaos  ## every S3 server that can be installed here; with WRITE=1, the table of docs/reference/s3-stores.md
	nice $(BIN)/python -m tests.s3.servers
	WRITE=$(WRITE) $(BIN)/python -m pytest tests/s3

test-images: $(VENV)/.images  ## build the images of deploy/ and render with them; needs Debian or Ubuntu and root
	dpkg --status $(BUILDERS) >/dev/null 2>&1 || { $(SUDO) apt-get update --quiet && \
		$(SUDO) apt-get install --yes --quiet --no-install-recommends $(BUILDERS); }
	$(SUDO) $(BIN)/python -m pytest -m acceptance -p no:cacheprovider -rP tests/acceptance/test_images.py

check: $(VENV)/.dev check-javascript  ## lint, format, import contracts, spelling, banned words, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/codespell
	$(BIN)/python .ci/banned_words.py
	$(BIN)/mypy

check-javascript: $(VENV)/.javascript  ## lint, format and types of the dashboard
	$(NODE) $(JAVASCRIPT)/node_modules/typescript/bin/tsc --project $(JAVASCRIPT)
	$(NODE) $(JAVASCRIPT)/node_modules/eslint/bin/eslint.js --config $(JAVASCRIPT)/eslint.config.js $(DASHBOARD)
	$(PRETTIER) --check "$(DASHBOARD)/**/*.{js,css,html}" "$(JAVASCRIPT)/*.js"

format: $(VENV)/.javascript
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(PRETTIER) --write "$(DASHBOARD)/**/*.{js,css,html}" "$(JAVASCRIPT)/*.js"

bench: export PYTHONPATH = worker
bench: $(VENV)/.dev  ## measurements, an hour of them; fails if a bar is missed, after all have run
	@missed=; for name in $(BENCHMARKS); do \
		echo "== bench_$$name"; $(BIN)/python -m tests.bench.bench_$$name --write || missed="$$missed $$name"; \
	done; $(BIN)/python -m pytest -m bench || missed="$$missed pytest"; \
	test -z "$$missed" || { echo "bars are missed:$$missed"; exit 1; }

chaos: $(VENV)/.chaos  ## kill, freeze and cut everything for MINUTES=3; also SEED=n, STORE=moto, WRITE=1
	$(BIN)/python -m tests.chaos --minutes $(MINUTES) --store $(STORE) $(if $(SEED),--seed $(SEED)) $(if $(WRITE),--write)

docs: $(VENV)/.dev  ## write the commands into docs/reference/cli.md, and the alerts as Kubernetes wants them
	$(BIN)/python docs/write_reference.py
	$(BIN)/python deploy/kubernetes/write_prometheus_rule.py

screenshots: install  ## photograph the dashboard over a farm that renders, into docs/dashboard; SHOTS="batch gallery" names some
	$(BIN)/python -m tests.integration.server.dashboard.screenshots $(SHOTS)

deploy/.env:  ## passwords for deploy/compose.yaml, drawn at random
	@umask 077; for name in REDIS_PASSWORD S3_SECRET_KEY GRAFANA_PASSWORD; do \
		echo "$$name=$$($(PYTHON) -c 'import secrets; print(secrets.token_hex(24))')"; done >$@
	@echo "$@ is written; it is read by docker compose"

clean:
	rm -rf $(VENV) $(JAVASCRIPT)/node_modules .latentfarm out build

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "latentfarm needs Python 3.11 or newer; name one with make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP_INSTALL) --editable '.[worker,local,server]'
	touch $@

# no torch: that is in the image
$(VENV)/.images: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP_INSTALL) --editable '.[local]' hypothesis pytest pytest-timeout pyyaml
	touch $@

$(VENV)/.chaos: $(VENV)/.dev
	$(PIP_INSTALL) --editable '.[chaos]'
	touch $@

# pip would compile every file before anything else may run, which takes as long as the rest of it
$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP_INSTALL) --no-compile --editable '.[worker,local,server,parquet,dev]'
	touch $@ $(VENV)/.run

$(VENV)/.compiled: $(VENV)/.dev
	@# some packages have templates of code, which do not compile
	$(BIN)/python -m compileall -qq $(VENV)/lib producer worker || true
	touch $@

# LoRAs are compared with peft's. It needs accelerate, with which diffusers loads models in another way: so both are in
# a folder that only the process of the comparison reads
$(VENV)/peft: | $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $@.draft peft==0.21.2 accelerate==1.15.0
	mv $@.draft $@

# with the certificates of the system, as pip: a network may have a proxy with its own
$(VENV)/.javascript: $(JAVASCRIPT)/package.json $(JAVASCRIPT)/package-lock.json $(VENV)/.dev
	NODE_OPTIONS=--use-system-ca $(BIN)/npm ci --prefix $(JAVASCRIPT) --no-progress
	touch $@

$(VENV)/.tools: tests/support/tools.py | $(VENV)/bin/python
	$(BIN)/python -m tests.support.tools
	touch $@
