#!/bin/sh
# The demo's recipe launched in four ways, and what each of them came to: recipes/launch/four_ways.sh DIR [KEY=VALUE ..]
# One process, two processes, a teacher in another process, vLLM as the sampler (left out without VAOPD_VLLM_PYTHON).
# A way that is complete is not run again, one that was stopped goes on.
set -eu
dir=$1
shift
here=$(dirname "$0")
recipe=$here/../quickstart.yaml
mkdir -p "$dir"

missing() {
    ! [ -d "$dir/$1/final" ]
}

resume() {
    [ ! -e "$dir/$1/config.yaml" ] || echo --resume
}

if missing one_process; then
    vaopd train "$recipe" --output "$dir/one_process" $(resume one_process) "$@"
fi
if missing two_processes; then
    "$here/two_cpu_processes.sh" "$recipe" --output "$dir/two_processes" $(resume two_processes) "$@"
fi
if missing remote_teacher; then
    VAOPD_TEACHER_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(16))')
    export VAOPD_TEACHER_TOKEN
    port=${VAOPD_TEACHER_PORT:-8777}
    vaopd serve-teacher tiny:teacher-m --port "$port" > "$dir/teacher.log" 2>&1 &
    server=$!
    trap 'kill $server' EXIT
    until grep -q "http://" "$dir/teacher.log"; do
        kill -0 $server || { cat "$dir/teacher.log"; exit 1; }
        sleep 1
    done
    vaopd train "$recipe" --output "$dir/remote_teacher" $(resume remote_teacher) "$@" \
        "teacher.addresses=[http://127.0.0.1:$port]"
    kill $server
    trap - EXIT
fi
if [ -z "${VAOPD_VLLM_PYTHON:-}" ]; then
    echo "VAOPD_VLLM_PYTHON names no interpreter with vLLM: three ways"
elif missing vllm; then
    vaopd train "$recipe" --output "$dir/vllm" $(resume vllm) "$@" sampling.engine=vllm
fi
exec python "$here/compare.py" "$dir"
