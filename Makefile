# make demo    environment, demo clips, the whole pipeline, a page with what came out
# make test    environment, all tests
# make bench   environment, how fast everything is on this machine beside docs/speed.md's goals: OUT/speed.md
# make chaos   environment, kills, damage, full disks and signals to every script: OUT/chaos.md
# make fuzz    environment, odd input to everything that is read, and what became of it: OUT/fuzz.md
# make study   environment, the whole study on BDD100K: VIDEOS=bdd100k/videos LABELS=bdd100k/labels/det_20
#
# Variables: ENV       place of the environment
#            PYTHON    the Python that makes it, 3.11 or newer
#            OUT       place of the demo's files, of the bench's, or of the study's: by default demo_out,
#                      bench_out, and here
#            VIDEOS, LABELS    your own clips for the demo instead of rendered ones, in BDD100K's layout
#            IMAGES            your own pictures for the demo; BDD100K's stills (images/100k) for the study
#            FAMILY=as_run     the study as its code ran it, not as its text says
#            LADDER=1          instead: one tokenizer from as run to our own recipe, step by step
#            DRY_RUN=1         the study's commands are printed, not run
#            REHEARSE=1        the study in minutes, on few frames with tiny networks, under OUT/rehearsal

bench: OUT := $(or $(OUT),bench_out)
chaos: OUT := $(or $(OUT),chaos_out)
fuzz: OUT := $(or $(OUT),fuzz_out)

# The study has these as they are given, without the demo's defaults below.
study: OUT := $(or $(OUT),.)
study: VIDEOS := $(VIDEOS)
study: LABELS := $(LABELS)
study: IMAGES := $(IMAGES)

ENV ?= .venv
PYTHON ?= python3
OUT ?= demo_out

PY := $(ENV)/bin/python
# On a CPU the launcher gives a process one thread unless it is told otherwise.
LAUNCH := $(ENV)/bin/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no \
    --dynamo_backend no --num_cpu_threads_per_process $(shell nproc)
# The demo's networks are larger where there is a GPU.
GPU := $(shell nvidia-smi -L 2>/dev/null | grep -q GPU && echo _gpu)
IN_OUT := --set "run.dir=$(OUT)/runs" --set "data.frames=$(OUT)/frames"

.PHONY: demo test bench chaos fuzz study clips

$(ENV)/installed: requirements.txt bootstrap_env.py
	$(PYTHON) bootstrap_env.py $(ENV) requirements.txt
	@touch $@

$(ENV)/installed-export: requirements-export.txt | $(ENV)/installed
	$(PY) -m pip install --quiet -r requirements-export.txt
	@touch $@

test: $(ENV)/installed $(ENV)/installed-export
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pytest --numprocesses $(shell nproc) --dist worksteal
	@if $(PY) -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then $(PY) -m pytest -m cuda; fi

bench: $(ENV)/installed
	$(PY) bench.py all --repeats 3 --json "$(OUT)/speed.json" --markdown "$(OUT)/speed.md"

chaos: $(ENV)/installed
	$(PY) -m tests.chaos --out "$(OUT)"

fuzz: $(ENV)/installed
	$(PY) -m tests.fuzz --out "$(OUT)"

study: $(ENV)/installed
	$(PY) study.py $(if $(VIDEOS),--videos "$(VIDEOS)") $(if $(IMAGES),--images "$(IMAGES)") \
	    $(if $(LABELS),--labels "$(LABELS)") --out "$(OUT)" $(if $(FAMILY),--family $(FAMILY)) \
	    $(if $(LADDER),--ladder) $(if $(DRY_RUN),--dry-run) $(if $(REHEARSE),--rehearse)

ifdef IMAGES
SOURCE = --images "$(IMAGES)"
clips: $(ENV)/installed
else ifdef VIDEOS
SOURCE = --videos "$(VIDEOS)" --frames-per-video 24
clips: $(ENV)/installed
else
SOURCE = --videos "$(VIDEOS)" --frames-per-video 2
VIDEOS := $(OUT)/videos
LABELS := $(OUT)/labels/det_20
clips: $(ENV)/installed
	$(PY) -m demo.render_clips --out "$(OUT)"
endif

# The real FID where its weights can be had; otherwise the distance of other features, under its own name.
MEASURE = $(PY) evaluate.py --runs "$(OUT)/runs" --rfid --gfid

demo: clips
	$(PY) extract_frames.py $(SOURCE) $(if $(LABELS),--labels "$(LABELS)") --out "$(OUT)/frames" --short-side 128
	$(LAUNCH) train_tokenizer.py --config configs/demo_tokenizer$(GPU).yaml $(IN_OUT)
	$(LAUNCH) train_maskgit.py --config configs/demo_maskgit$(GPU).yaml $(IN_OUT) \
	    --set "tokenizer=$(OUT)/runs/demo_tokenizer" --set "data.tokens=$(OUT)/tokens"
	$(MEASURE) --psnr --ssim --codebook --borders || $(MEASURE) --feature-extractor efficientnet-lite0
	$(PY) generate.py --run "$(OUT)/runs/demo_maskgit" --num 64 --out "$(OUT)/samples"
	$(PY) report.py --runs "$(OUT)/runs" --out "$(OUT)/report"
