# make help says what there is. Needed: Python 3.11 and make; everything else comes from the locks into .venv.
SHELL := bash
.SHELLFLAGS := -e -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help study report all test site lab lock readme clean python
MAKEFLAGS += --no-print-directory
# nothing of the user's own Python may leak into the environment
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV
export PYTHONNOUSERSITE := 1

CORPUS  ?= auto
PROFILE ?= quick
SEEDS   ?=
SEED    ?=
OUT     ?=
STRICT  ?=
ONLY    ?=
PYTHON  ?= $(firstword $(foreach p,python3.11 python3 python,$(shell \
             $(p) -c 'import sys; assert sys.version_info[:2] == (3, 11)' 2>/dev/null && echo $(p))))

VENV := .venv
BIN  := $(VENV)/bin
# the stamp is written last and carries the lock's checksum: an unfinished or outdated environment never counts as made
STAMP := $(VENV)/.made-$(shell cksum < requirements-study.lock | tr ' ' '-')
# recognisers, Whisper's encoders and what tests need come on top, by requirements.lock
ALL   := $(VENV)/.all-$(shell cksum < requirements.lock | tr ' ' '-')
HERE  := $(VENV)/.linked-$(shell cat settings.ini setup.py pyproject.toml .gitattributes | cksum | tr ' ' '-')

define HELP
make study    the whole study: makes .venv, runs the study notebooks, writes reports/<corpus>/index.html
                CORPUS=auto|ravdess|twin   real RAVDESS, its synthetic twin, or auto: RAVDESS where it is found
                PROFILE=quick|full         a first look in minutes, or the numbers as reported
                SEEDS=N                    how many seeds per protocol (as the profile says when not given)
                SEED=N                     the first of them (0 when not given): another one shows another draw
                OUT=folder                 where the report goes
                STRICT=1                   stop when clips are missing, instead of going on and saying so
                ONLY=names                 some notebooks, e.g. ONLY=04_new_speakers or ONLY='09 10'
make report   all that README and the committed report show, in some hours: every page from RAVDESS, other corpora,
                dialogues and the larger encoder; says at once which of them is missing. OUT and SEEDS as above
make all      adds the speech recognisers, Whisper's encoders, and what tests and the book need to the environment
make test     the same, then everything that CI runs
make site     the book: every chapter and study as a static site, _site/index.html; no network needed
make lab      opens JupyterLab on the notebooks
make lock     writes the locks and environment.yml anew from settings.ini
make readme   writes README.md from nbs/index.ipynb
make clean    removes .venv, _site and caches; reports and data stay
PYTHON=path names the Python 3.11 to use.
endef
export HELP

help:
	@echo "$$HELP"

# --- wrong values are told in one line, before anything is built
ifneq ($(filter study,$(MAKECMDGOALS)),)
  SETTINGS := CORPUS PROFILE SEEDS SEED OUT STRICT ONLY PYTHON
  UNKNOWN := $(filter-out $(SETTINGS),$(foreach s,$(filter-out -%,$(subst \ ,_,$(-*-command-variables-*-))),$(firstword $(subst =, ,$(subst :=,=,$(s))))))
  $(if $(UNKNOWN),$(error $(UNKNOWN) is no setting of make study; there are $(SETTINGS)))
  $(if $(filter-out auto ravdess twin,$(or $(CORPUS),''))$(word 2,$(CORPUS)),$(error CORPUS=$(CORPUS) is not one of auto, ravdess, twin))
  $(if $(filter-out quick full,$(or $(PROFILE),''))$(word 2,$(PROFILE)),$(error PROFILE=$(PROFILE) is not one of quick, full))
  CODED := $(strip $(foreach s,SEEDS SEED OUT ONLY,$(if $(findstring $$,$(value $(s))),$(s))))
  $(if $(CODED),$(error $(CODED) holds a dollar sign, which make would take for a command of its own))
  export SEEDS SEED OUT ONLY
  $(if $(SEEDS),$(if $(shell [[ "$$SEEDS" =~ ^[1-9][0-9]*$$ ]] && echo yes),,$(error SEEDS=$(SEEDS) is not a whole number of 1 or more)))
  $(if $(SEED),$(if $(shell [[ "$$SEED" =~ ^[0-9]+$$ ]] && echo yes),,$(error SEED=$(SEED) is not a whole number of 0 or more)))
  $(if $(filter-out 1,$(STRICT)),$(error STRICT=$(STRICT) is not 1; leave it out for no))
endif

# --- the environment
define NO_PYTHON
error: no Python 3.11 found (the lock is made for it); install it, or name one: make PYTHON=/path/to/python3.11 ...
endef

python:
	@'$(PYTHON)' -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null || { echo "$(NO_PYTHON)" >&2; exit 2; }
	@'$(PYTHON)' -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "error: $(PYTHON) lacks venv (Debian and Ubuntu: apt install python3.11-venv)" >&2; exit 2; }

# installs what a lock names and counts it; what pip says on its error stream is shown when it fails
define packages
	@total=$$(grep -c '^[a-z]' $(1)); n=0; \
	echo "== environment: packages of $(1), each checked by its hash (some minutes)"; \
	{ $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off --require-hashes --no-deps \
	  -r $(1) 2>$(VENV)/install.err || { cat $(VENV)/install.err >&2; false; }; } | \
	tee -a $(VENV)/install.log | while read -r verb name rest; do case "$$verb $$name" in \
	    'Ignoring '*|'Requirement already') total=$$((total - 1));; \
	    'Collecting '*|'Processing '*) n=$$((n + 1)); echo "   $$n/$$total $${name##*/}";; \
	    'Installing collected') echo "   unpacking (a minute)";; esac; done
endef

$(STAMP): | python
	@echo "== environment: a new $(VENV) with $$($(PYTHON) --version), nothing outside of it is changed"
	@rm -rf $(VENV)
	@'$(PYTHON)' -m venv $(VENV)
	$(call packages,requirements-study.lock)
	@rm -rf $(VENV)/lib/python3.11/site-packages/tensorflow/include  # C++ headers, 300 MB: nothing is compiled here
	@touch $@

$(ALL): | $(STAMP)
	@echo "== environment: adding recognisers, encoders and what tests need"
	$(call packages,requirements.lock)
	@rm -f $(VENV)/.all-*
	@touch $@

$(HERE): | $(STAMP)
	@echo "== environment: linking this checkout into it"
	@rm -f $(VENV)/.linked-*
	@$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps --no-build-isolation -e . 2>$(VENV)/link.err || \
	  { cat $(VENV)/link.err >&2; false; }
	@$(BIN)/python tests/house_checks.py install
	@touch $@

# --- the commands
study: | $(HERE)
	@set -f; only=(); for name in $$ONLY; do only+=(--only "$$name"); done; \
	$(BIN)/emotion-study study --corpus '$(CORPUS)' --profile '$(PROFILE)' --seeds '$(or $(SEEDS),0)' --seed '$(or $(SEED),0)' --out "$$OUT" \
	  $(if $(STRICT),--strict) "$${only[@]}"

all: | $(HERE) $(ALL)

# the pages of the committed report; what is no part of it is in appendices that ONLY names
PAGES := 0 10 11 12 13 14 15 17 18 88 89 95 96 97 98 99
report: export EMOTION_STUDY_CORPORA ?= $(CURDIR)/data
report: all
	@$(BIN)/python tests/house_checks.py sources
	@$(MAKE) study CORPUS=ravdess PROFILE=full ONLY='$(PAGES)'

# study notebooks are run by papermill inside pytest; every part runs, and any that fails makes the whole fail
test: | $(HERE) $(ALL)
	@failed=; part() { echo "== test: $$1"; shift; "$$@" || failed=yes; }; \
	echo "== test: $$($(BIN)/python tests/house_checks.py corpus)"; \
	part 'exported modules match the notebooks' $(BIN)/python tests/house_checks.py drift; \
	part 'notebooks are clean' $(BIN)/python tests/house_checks.py clean; \
	part 'code and docstrings by ruff and docments' $(BIN)/python tests/house_checks.py lint; \
	part 'lesson cells of the library notebooks' $(BIN)/python tests/house_checks.py lessons; \
	[ -z "$$failed" ] || echo "== test: a part above FAILED"; \
	part 'pytest' $(BIN)/python -m pytest; [ -z "$$failed" ]

site: | $(HERE) $(ALL)
	@echo "== site: building the book (a minute or two)"
	@$(BIN)/emotion-study site --out _site

lab: | $(HERE)
	@$(BIN)/jupyter lab nbs/index.ipynb

lock: | python
	@echo "== lock: uv resolves the requirements of settings.ini (in a throwaway environment)"
	@tmp=$$(mktemp -d); trap "rm -rf $$tmp" EXIT; '$(PYTHON)' -m venv $$tmp/venv; \
	$$tmp/venv/bin/python -m pip install -q --disable-pip-version-check uv packaging; \
	$$tmp/venv/bin/python .ci/lock.py

readme: | $(HERE) $(ALL)
	@$(BIN)/python tests/house_checks.py readme > README.md.new && mv README.md.new README.md && echo "README.md written"

clean:
	@rm -rf $(VENV) .pytest_cache .hypothesis build dist _docs _proc _site *.egg-info
	@find . -name __pycache__ -prune -exec rm -rf {} +; find . -name .ipynb_checkpoints -prune -exec rm -rf {} +
	@echo "removed .venv, _site and caches; reports and data are kept"
