#!/usr/bin/env bash
# A private, real Slurm cluster of pretend nodes on this machine, to try the sbatch templates on.
#
#   testbed.sh up DIR [NODES]        start it (2 nodes); DIR keeps its state and logs
#   testbed.sh run DIR CMD...        run CMD on the login node: run DIR sbatch --wait job.sh
#   testbed.sh on DIR HOST CMD...    run CMD on a host: on DIR node1 hostname
#   testbed.sh kill DIR HOST         a host loses its power
#   eval "$(testbed.sh env DIR)"     this shell's sbatch, squeue, scancel ... mean the testbed
#   testbed.sh down DIR              kill all that `up` started, jobs included
#
# Exit status: 0 done, 1 failed, 2 called wrongly, 3 impossible on this machine.
#
# Needs root (namespaces, veth, mknod) and a few packages, which it names; no systemd, no cgroups.
# Each host, the login node "ctl" included, is a set of namespaces: its own name, network, processes
# and /dev/shm. The hosts reach each other over a bridge that has no way out. So a job that says
# localhost where it means the first node fails, as it does on a real cluster. Files are shared.
# Jobs of the partition "urgent" preempt those of "main", which go back to the queue.
# CPUs, memory and GPUs (8 a node) are made up: jobs are scheduled by them, nothing enforces them.
set -euo pipefail

die() { echo "testbed: $*" >&2; exit 1; }
impossible() { echo "testbed: $*" >&2; exit 3; }
usage() { sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "$0"; exit 2; }

(($# >= 2)) || usage
VERB=$1 DIR=$(realpath -m "$2")
shift 2

# --- hosts ----------------------------------------------------------------------------------------
# A host is kept alive by one process, the first of its process namespace: when that is killed, the
# kernel kills everything in the host. DIR/pid/HOST holds its id; DIR in its command line tells it
# from a later owner of that id.

host_pid() { # HOST -> its id, if it is up
    local pid
    [[ -s $DIR/pid/$1 ]] && read -r pid <"$DIR/pid/$1" || return 1
    grep -qsF "$DIR/hosts" "/proc/$pid/cmdline" && echo "$pid"
}

on() { # HOST CMD...: run CMD there, from the working directory here
    local pid name=$1
    shift
    pid=$(host_pid "$name") || die "$name is not up in $DIR"
    nsenter --target "$pid" --net --uts --ipc --mount --pid --wd="$PWD" -- \
        env HOSTNAME="$name" SLURM_CONF="$DIR/slurm.conf" "$@"
}

start_host() { # HOST ADDRESS
    # shellcheck disable=SC2016  # for the inner shell
    setsid unshare --net --uts --ipc --mount --pid --fork bash -euc '
        hosts=$1 name=$2 pid_file=$3
        read -r pid _ </proc/self/stat      # as seen from outside, while the outer /proc is here
        mount -t proc proc /proc
        mount -t tmpfs tmpfs /dev/shm
        mount --bind "$hosts" /etc/hosts
        for gpu in /dev/nvidia*; do         # real ones are hidden: the GPUs of a node are made up
            [[ ! -c $gpu ]] || mount --bind /dev/null "$gpu"
        done
        hostname "$name"
        ip link set lo up
        echo "$pid" >"$pid_file.new" && mv "$pid_file.new" "$pid_file"
        sleep infinity &
        wait                                # a shell: the first process must collect orphans
    ' testbed "$DIR/hosts" "$1" "$DIR/pid/$1" </dev/null >>"$DIR/log/$1.host" 2>&1 &
    wait_for 10 "host $1" host_pid "$1"
    if [[ $1 == ctl ]]; then
        on ctl ip link add eth0 type bridge
    else
        # Not by `on`: the id that follows netns is one of this machine, not of ctl.
        nsenter --target "$(host_pid ctl)" --net \
            ip link add "$1" type veth peer name eth0 netns "$(host_pid "$1")"
        on ctl ip link set "$1" master eth0 up
    fi
    on "$1" ip address add "$2/24" dev eth0
    on "$1" ip link set eth0 up
}

start_daemon() { # HOST CMD...
    on "$@" </dev/null >>"$DIR/log/$1.daemon" 2>&1 &
}

wait_for() { # SECONDS WHAT CMD...
    local end=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" &>/dev/null; do
        if ((SECONDS >= end)); then
            tail -n 5 "$DIR"/log/* >&2 || true
            die "$what did not come up; logs are in $DIR/log"
        fi
        sleep 0.05
    done
}

# --- configuration --------------------------------------------------------------------------------

write_configuration() { # NODES
    local i
    mkdir -p "$DIR"/{pid,log,state,munge,gpus}
    chmod 711 "$DIR/munge" # clients reach the socket, not the key
    (umask 077 && head -c 128 /dev/urandom >"$DIR/munge/key")
    for i in {0..7}; do mknod -m 666 "$DIR/gpus/gpu$i" c 1 3; done # must be devices: /dev/null's
    {
        echo "127.0.0.1 localhost"
        echo "10.77.0.254 ctl"
        for ((i = 1; i <= $1; i++)); do echo "10.77.0.$i node$i"; done
    } >"$DIR/hosts"
    printf '%s\n' CgroupPlugin=cgroup/v1 IgnoreSystemd=yes >"$DIR/cgroup.conf" # read, not used
    printf '%s\n' AutoDetect=off "Name=gpu File=$DIR/gpus/gpu[0-7]" >"$DIR/gres.conf"
    # cred_expire is also the pause before a requeued job restarts (else 120 s). MinJobAge: without
    # sacct, finished jobs must stay visible to scontrol.
    cat >"$DIR/slurm.conf" <<CONF
ClusterName=testbed
SlurmctldHost=ctl
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$DIR/munge/socket,cred_expire=5
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/state/%n
SlurmctldPidFile=$DIR/pid/slurmctld.pid
SlurmdPidFile=$DIR/pid/slurmd-%n.pid
SlurmctldLogFile=$DIR/log/slurmctld
SlurmdLogFile=$DIR/log/slurmd-%n
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
SlurmdParameters=config_overrides
PropagateResourceLimits=NONE
ReturnToService=2
KillWait=5
MinJobAge=86400
GresTypes=gpu
NodeName=node[1-$1] CPUs=32 RealMemory=256000 Gres=gpu:8 State=UNKNOWN
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE DefMemPerCPU=100 State=UP
PartitionName=urgent Nodes=ALL MaxTime=INFINITE DefMemPerCPU=100 PriorityTier=10 PreemptMode=OFF State=UP
CONF
}

# --- verbs ----------------------------------------------------------------------------------------

check_tools() {
    local pair missing=()
    for pair in munged:munge slurmctld:slurmctld slurmd:slurmd sbatch:slurm-client \
        ip:iproute2 nsenter:util-linux; do
        command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
    done
    ((${#missing[@]} == 0)) ||
        impossible "missing: apt-get install --no-install-recommends ${missing[*]}"
    [[ $(id -u) == 0 ]] || impossible "must run as root"
    unshare --net --uts --ipc --mount --pid --fork --mount-proc \
        ip link add veth0 type veth peer name veth1 ||
        impossible "no namespaces or veth here: a container needs CAP_SYS_ADMIN, CAP_NET_ADMIN"
}

idle_nodes_are() { (($(on ctl sinfo --noheader --Node --format=%t | grep -cx idle) == $1)); }

up() { # NODES
    local i
    check_tools
    ((${#DIR} <= 80)) || die "DIR is too long for the path of a socket: $DIR"
    ! host_pid ctl >/dev/null || die "already up in $DIR: run down first"
    [[ ! -e $DIR || -f $DIR/slurm.conf || -z $(ls -A "$DIR") ]] ||
        die "$DIR is not empty, and no testbed"
    rm -rf "$DIR"
    write_configuration "$1"
    trap 'down >&2' EXIT

    start_host ctl 10.77.0.254
    start_daemon ctl munged --foreground --socket="$DIR/munge/socket" --key-file="$DIR/munge/key" \
        --seed-file="$DIR/munge/seed" --pid-file="$DIR/munge/pid" --log-file="$DIR/log/munged"
    wait_for 10 munged munge --socket="$DIR/munge/socket" --no-input
    start_daemon ctl slurmctld -D -c
    for ((i = 1; i <= $1; i++)); do
        start_host "node$i" "10.77.0.$i"
        start_daemon "node$i" slurmd -D -N "node$i"
    done
    wait_for 100 Slurm idle_nodes_are "$1"

    trap - EXIT
    echo "up: $1 nodes; eval \"\$($0 env $DIR)\""
}

kill_host() { # HOST
    local pid
    if pid=$(host_pid "$1"); then
        kill -KILL "$pid"
        while [[ -e /proc/$pid ]]; do sleep 0.02; done # gone only after all that it held
    fi
}

down() {
    local file
    for file in "$DIR"/pid/{node*,ctl}; do kill_host "${file##*/}"; done
    echo "down: $DIR"
}

case $VERB in
    up) up "${1:-2}" ;;
    run) on ctl "$@" ;;
    on) on "$@" ;;
    kill) kill_host "$1" ;;
    env)
        for command in sbatch srun salloc squeue scancel scontrol sinfo; do
            printf '%s() { %q run %q %s "$@"; }\n' "$command" "$(realpath "$0")" "$DIR" "$command"
        done
        ;;
    down) down ;;
    *) usage ;;
esac
