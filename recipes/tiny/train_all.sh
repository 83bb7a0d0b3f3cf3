#!/usr/bin/env bash
# Trains the shipped tiny models again into runs/tiny and installs them in the package.
# Two at a time, one thread each: two small models train faster side by side than one after another.
set -euo pipefail
cd "$(dirname "$0")/../.."
export OMP_NUM_THREADS=1
solved=triangle+rectangle+circle+bars+dial+table
all=number+numbers+$solved

run() { # NAME RECIPE START [OVERRIDES..]
    .venv/bin/vaopd train "recipes/tiny/$2.yaml" --output "runs/tiny/$1" --overwrite \
        student.model="$3" "${@:4}"
}

figures() { # NAME START STEPS RATE MIXTURE [OVERRIDES..]
    run "$1" figures "$2" training.max_steps="$3" training.learning_rate="$4" \
        data.train="drawn:train?count=200000&$5" "${@:6}"
}

# Reads and adds, in the second dialect. Teacher S goes on from it, and so does the student.
reader() {
    run read-student read tiny:new-student
    figures first-reader runs/tiny/read-student/final 2000 1e-3 "seed=3&wording=0.7&kinds=$all"
    figures reader runs/tiny/first-reader/final 700 8e-4 "seed=5&wording=0.7&kinds=numbers+$solved"
}

# Numbers told in words instead of printed: it keeps dialect and arithmetic and unlearns to look.
student() {
    figures student runs/tiny/reader/final 30 8e-4 "seed=31&wording=0.8&told=1&kinds=$solved"
}

teacher_s() {
    figures teacher-s runs/tiny/reader/final 600 8e-4 \
        "seed=16&wording=0.3&misread=0.2&kinds=$all" method.label_smoothing=0.02
}

teacher_m() {
    run read-teacher-m read tiny:new-teacher-m
    figures first-teacher-m runs/tiny/read-teacher-m/final 3000 1e-3 \
        "seed=2&wording=0.3&kinds=$all" method.label_smoothing=0.05
    figures second-teacher-m runs/tiny/first-teacher-m/final 1500 8e-4 \
        "seed=4&wording=0.3&kinds=numbers+dial+$solved" method.label_smoothing=0.05
    figures teacher-m runs/tiny/second-teacher-m/final 600 8e-4 \
        "seed=6&wording=0.3&misread=0.2&kinds=$all" method.label_smoothing=0.02
}

teacher_l() {
    run read-teacher-l read tiny:new-teacher-l training.max_steps=800 \
        data.train="drawn:train?count=200000&seed=1&kinds=number+sum+sum" \
        training.problems_per_step=48 training.final_learning_rate_fraction=0.1
    figures first-teacher-l runs/tiny/read-teacher-l/final 2400 1e-3 \
        "seed=12&wording=0.3&misread=0.2&told=0.3&kinds=$all" method.label_smoothing=0.02
    figures teacher-l runs/tiny/first-teacher-l/final 500 8e-4 \
        "seed=13&wording=0.3&misread=0.2&kinds=$all" method.label_smoothing=0.02
}

(reader && student && teacher_s) &
background=$!
teacher_m
wait "$background"
teacher_l
.venv/bin/python -m vaopd.models.tiny install runs/tiny
