# make demo | test | test-slow | test-wheel | lint | eval | wordings | experts | libero | libero-table | bench | latency | faults | soak | train | constraints | wheels | docs-test | newcomer | clean   (make help)
# Needs Python 3.10 - 3.13 and, as root on Debian or Ubuntu, installs the rest by itself.
# A sourced ROS is used; without one, make installs rclpy from PyPI: docs/install.md.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
# A sourced ROS is built against one NumPy.
INSTALL := $(PIP) install -q $(addprefix -c ,$(wildcard constraints/$(ROS_DISTRO).txt))
POLICY ?= models/nano
EPISODES ?= 50
WORKERS ?= 2
OUT ?= out
DATA ?= data/tabletop
RUN ?= runs/nano
COMPILE = $(if $(shell command -v g++),--compile)
MINUTES ?= 80
COLLECT = $(BIN)/dtvla collect --workers $(WORKERS) --camera-every 4 --randomised-share 0.5
TEST_WORKERS ?= 4
TAGS ?= quick
NEWCOMER = README.md docs/your-data.md docs/recording.md docs/data.md docs/annotation.md \
	docs/evaluation.md docs/thought.md

.PHONY: help demo test test-slow test-wheel lint eval wordings experts libero libero-table bench latency faults soak train constraints wheels interfaces docs-test newcomer clean one-ros

help:  ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# Without a display MuJoCo draws through EGL or OSMesa; a Debian python3 comes without venv.
$(VENV)/bin/python:
	@bash tools/system_packages $(PYTHON)
	options=$$($(PYTHON) tools/rclpy_source options) && $(PYTHON) -m venv $$options $(VENV)
	$(PIP) install -q --upgrade pip

# Asked each time: a shell may have sourced ROS since the wheels were installed.
one-ros: | $(VENV)/bin/python
	@$(BIN)/python tools/rclpy_source check

$(VENV)/.rclpy: constraints/ros-jazzy-wheels.txt | one-ros
	@$(BIN)/python tools/rclpy_source install
	@touch $@

$(VENV)/.installed: setup.cfg setup.py $(VENV)/.rclpy | one-ros
	$(INSTALL) -e '.[sim,operator]'
	$(INSTALL) --no-deps robosuite==1.4.0
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(INSTALL) -e '.[sim,operator,train,test]'
	@touch $@

# Not among the wheels. Built once, where a compiler is there; else it is asked for each time.
INTERFACES := $(shell find tools/interfaces dtvla_interfaces -type f)
$(VENV)/.interfaces: tools/build_interfaces constraints/ros-jazzy-generators.txt $(INTERFACES) $(VENV)/.rclpy
	@$(BIN)/python tools/build_interfaces $@

interfaces: $(VENV)/.interfaces  ## tf2_msgs, gripper actions and our own beside the wheels of ROS (needs g++)

demo: $(VENV)/.installed  ## a simulated arm, driven over ROS 2 topics, thinks and acts: out/demo.mp4
	$(BIN)/dtvla demo --policy $(POLICY) --out $(OUT) \
		--say "Could you shove the green block over to the yellow patch, please?" \
		--say "No, wait, put the banana in the fridge."

lint: $(VENV)/.installed-dev  ## style, who may import whom, types
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

test: lint $(VENV)/.interfaces  ## lint, then all tests but the long ones, TEST_WORKERS=4 side by side (no GPU, no ROS installation, no display)
	$(BIN)/python -m pytest -m 'not slow' -n $(TEST_WORKERS) --dist loadscope \
		--max-worker-restart 0

test-slow: $(VENV)/.installed-dev $(VENV)/.interfaces  ## the long tests
	$(BIN)/python -m pytest -m slow

test-wheel:  ## build the wheel of what is committed, use it outside the checkout: demo, record, data, eval
	@bash tools/system_packages $(PYTHON)
	tools/test_wheel $(PYTHON)

eval: $(VENV)/.installed  ## success per task: EPISODES=50 WORKERS=2 POLICY=models/nano
	$(BIN)/dtvla eval --suite tabletop --policy $(POLICY) --episodes $(EPISODES) \
		--workers $(WORKERS) --json $(OUT)/eval.json

INSTRUCTIONS ?= config/instructions/tabletop.yaml
wordings: $(VENV)/.installed  ## success in any words, and what must be refused; goes on where it was stopped: INSTRUCTIONS=...
	$(BIN)/dtvla eval --policy $(POLICY) --instructions $(INSTRUCTIONS) --workers $(WORKERS) \
		--resume $(OUT)/wordings.jsonl --json $(OUT)/wordings.json --html $(OUT)/wordings.html

experts: $(VENV)/.installed  ## success of the scripted experts
	$(BIN)/dtvla experts --suite tabletop --episodes $(EPISODES) --workers $(WORKERS) \
		--json $(OUT)/experts.json

libero: $(VENV)/.installed  ## installs the LIBERO benchmark's environments (assets: docs/libero.md)
	$(INSTALL) -e '.[libero]'
	$(INSTALL) --no-deps hf-libero==0.1.4 bddl==1.0.1

TABLE ?= $(OUT)/libero/$(notdir $(POLICY))
SUITES ?= libero_object libero_spatial libero_goal libero_10
STARTS ?= benchmark jitter shuffle
MODES ?= full masked random swapped replay
CELLS = $(filter-out $(foreach suite,spatial goal 10,libero_$(suite)-shuffle-%),$(foreach suite,$(SUITES),$(foreach starts,$(STARTS),\
	$(MODES:%=$(suite)-$(starts)-%))))
part = $(word $(1),$(subst -, ,$*))

$(TABLE)/%.json: $(POLICY)/manifest.json | $(VENV)/.installed
	$(BIN)/dtvla eval --policy $(POLICY) --suite $(call part,1) --starts $(call part,2) \
		--mode $(call part,3) --episodes $(EPISODES) --workers $(WORKERS) $(FLAGS) \
		--resume $(@:.json=.jsonl) --json $@

libero-table: $(CELLS:%=$(TABLE)/%.json)  ## success by suite, starts and thought; goes on where it was stopped: POLICY=... EPISODES=20 FLAGS=--no-antialiasing
	$(BIN)/dtvla report $^ --html $(TABLE)/table.html > $(TABLE)/table.md && cat $(TABLE)/table.md

bench: $(VENV)/.installed-dev  ## how fast engines decide, beside the published scheme
	$(BIN)/dtvla bench --json $(OUT)/bench.json --plot $(OUT)/bench.png

latency: $(VENV)/.installed  ## what the path from camera to arm costs on this machine
	$(BIN)/python -m benchmarks.latency --json $(OUT)/latency.json

faults: $(VENV)/.installed-dev $(VENV)/.interfaces  ## injects every fault of the table on running nodes, writes docs/faults.md
	$(BIN)/python -m pytest test/faults --fault-table docs/faults.md --flood-seconds 60

soak: $(VENV)/.installed  ## ten minutes at 20 Hz with two cameras: late commands, memory
	$(BIN)/python -m benchmarks.soak --policy $(POLICY) --json $(OUT)/soak.json

train: $(VENV)/.installed-dev  ## record, train in two stages, export: DATA=data/tabletop RUN=runs/nano MINUTES=80
	$(COLLECT) --episodes 1000 --out $(DATA)
	$(COLLECT) --episodes 2000 --observation-share 1 --seed 1 --out $(DATA)-places
	$(COLLECT) --episodes 300 --done-share 1 --seed 6 --out $(DATA)-done
	$(COLLECT) --episodes 192 --release-share 0.55 --push-share 0.25 --seed 7 --out $(DATA)-lost
	$(COLLECT) --episodes 160 --switch-share 1 --clean-share 0 --release-share 0 --push-share 0 --seed 8 \
		--out $(DATA)-switched
	$(BIN)/dtvla train sft --data $(DATA) --data $(DATA)-places --out $(RUN) --minutes $(MINUTES) \
		$(COMPILE)
	$(BIN)/dtvla train sft --config config/train/nano-obeys.yaml --init $(RUN) \
		--data $(DATA) --weight 0.2 --data $(DATA)-switched --weight 0.3 \
		--data $(DATA)-lost --weight 0.17 --data $(DATA)-places --weight 0.17 \
		--data $(DATA)-done --weight 0.16 \
		--out $(RUN)-obeys --minutes $(MINUTES) $(COMPILE)
	$(BIN)/dtvla export $(RUN)-obeys --replan-steps 3 --out $(POLICY)

constraints: $(VENV)/bin/python  ## which requirements resolve under each ROS distribution's pins
	$(PIP) install -q uv
	$(BIN)/python tools/constraints

wheels: $(VENV)/bin/python  ## resolve the wheels of rclpy again, with their hashes
	$(PIP) install -q uv
	$(BIN)/python tools/ros_wheels

docs-test: $(VENV)/.installed-dev  ## type the quick commands of README and docs/, a new clone for each page: TAGS='quick long' PAGES=docs/data.md
	$(BIN)/python tools/docs_commands --tags $(TAGS) --limit 120 $(if $(PAGES),--pages $(PAGES))

newcomer:  ## type README and the pages on your own data and evaluation in one fresh clone, which installs itself
	$(PYTHON) tools/docs_commands --tags fresh quick --limit 15 --pages $(NEWCOMER)

clean:  ## remove what was built, keep data and runs
	rm -rf $(VENV) $(OUT) build install log *.egg-info
