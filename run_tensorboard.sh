#!/usr/bin/env bash
# Show the training in TensorBoard.
#
#   ./run_tensorboard.sh
#   LOG_DIR=/data/logs HOST=127.0.0.1 PORT=6007 ./run_tensorboard.sh
set -euo pipefail

usage() {
    cat <<'TEXT'
Usage: [LOG_DIR=FOLDER] [HOST=ADDRESS] [PORT=NUMBER] ./run_tensorboard.sh

Shows the training in TensorBoard, until Ctrl-C.

  LOG_DIR  folder with the logs                     (default: ./logs/tensorboard)
  HOST     address to listen on                     (default: 0.0.0.0, every network; 127.0.0.1 is this machine only)
  PORT     port to listen on, 1 to 65535            (default: 6006)
TEXT
}

# The message, one line an argument, to stderr.
fail() {
    printf '%s\n' "$@" >&2
    exit 1
}

if [[ $# -gt 0 ]]; then
    case "$1" in
        -h | --help)
            usage
            exit 0
            ;;
        *)
            printf 'Unknown argument: %s\n\n' "$1" >&2
            usage >&2
            exit 2
            ;;
    esac
fi

log_dir=${LOG_DIR:-./logs/tensorboard}
host=${HOST:-0.0.0.0}
port=${PORT:-6006}
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)

[[ $port =~ ^[0-9]{1,5}$ ]] && ((10#$port >= 1 && 10#$port <= 65535)) ||
    fail "PORT must be a number from 1 to 65535, not '$port'."
port=$((10#$port))
case "$log_dir" in
    -*) log_dir=./$log_dir ;; # not an option
esac

if [[ -x $root/.venv/bin/tensorboard ]]; then
    tensorboard=$root/.venv/bin/tensorboard
else
    tensorboard=$(command -v tensorboard) ||
        fail "TensorBoard is not installed. Install it with: make tensorboard" \
            "or: pip install -r requirements.txt"
fi

if [[ ! -d $log_dir ]]; then
    fail "There is no log folder at $log_dir." \
        "Train first, which writes it: python train.py" \
        "or name another one: LOG_DIR=FOLDER ./run_tensorboard.sh"
fi
if [[ -z $(find -L "$log_dir" -type f -name '*tfevents*' -print -quit) ]]; then
    fail "The log folder $log_dir holds no TensorBoard logs yet." \
        "Train first, which writes them: python train.py" \
        "or name another one: LOG_DIR=FOLDER ./run_tensorboard.sh"
fi

# Who answers on the loopback holds the port there and for 0.0.0.0; for any other address TensorBoard itself finds out.
case "$host" in
    0.0.0.0 | :: | 127.* | ::1 | localhost)
        if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
            fail "Port $port is taken, perhaps by another TensorBoard: http://localhost:$port" \
                "Choose another one: PORT=$((port < 65535 ? port + 1 : 6006)) ./run_tensorboard.sh"
        fi
        ;;
esac

echo "Logs:        $log_dir"
case "$host" in
    0.0.0.0 | ::)
        echo "TensorBoard: http://localhost:$port"
        echo "Listening on $host: others on the network can read it too, at http://${HOSTNAME:-this machine}:$port"
        echo "To close it to them: HOST=127.0.0.1 ./run_tensorboard.sh"
        ;;
    127.* | ::1 | localhost)
        echo "TensorBoard: http://localhost:$port (this machine only)"
        ;;
    *:*) echo "TensorBoard: http://[$host]:$port" ;;
    *) echo "TensorBoard: http://$host:$port" ;;
esac
echo "Ctrl-C ends it."

exec "$tensorboard" --logdir="$log_dir" --host="$host" --port="$port"
