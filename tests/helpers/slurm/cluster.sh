#!/usr/bin/env bash
# A real Slurm on one machine, for tests. Needs root. Slurm clients find it by SLURM_CONF=FOLDER/slurm.conf.
#
#   cluster.sh start FOLDER           start a head (slurmctld, and slurmdbd on MariaDB) and two nodes, n0 and n1
#   cluster.sh stop FOLDER            kill all processes of the cluster, jobs included, in any state
#   cluster.sh kill FOLDER n1         kill a node and everything that runs on it, as a power loss would
#   cluster.sh kill-daemon FOLDER n1  kill only its slurmd: jobs on the node go on, unknown to Slurm
#   cluster.sh boot FOLDER n1         restart a killed node or daemon
#
# ACCOUNTING=none starts without slurmdbd, so that sacct has no data. Missing Debian packages are installed by apt.
# Configuration, logs, state, database and sockets are in FOLDER; all ports are on the loopback interface.
#
# Head and nodes are three "machines": namespaces with their own process ids, host name and mounts. When the first
# process of a machine ends, all others in it are killed, so it is enough to kill those in FOLDER/{head,n0,n1}.pid.
set -euo pipefail
umask 077

LIFETIME=7200  # seconds after which a machine that was not stopped ends by itself

fail() {
    echo "cluster.sh: $*" >&2
    exit 1
}

wait_for() { # SECONDS WHAT COMMAND...: until COMMAND succeeds
    local until=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" &>/dev/null; do
        ((SECONDS < until)) || fail "timeout while waiting for $what; see the logs in $FOLDER"
        sleep 0.1
    done
}

missing_packages() {
    # Only the server of MariaDB: the full package would create a database in /var/lib/mysql.
    local package wanted=(slurmctld:slurmctld slurmd:slurmd sbatch:slurm-client munged:munge)
    if [[ $ACCOUNTING != none ]]; then wanted+=(slurmdbd:slurmdbd mariadbd:mariadb-server-core); fi
    for package in "${wanted[@]}"; do
        command -v "${package%:*}" >/dev/null || echo "${package#*:}"
    done
}

install_packages() {
    local missing
    exec {lock}>/tmp/mmp-slurm-packages.lock
    flock "$lock" # two clusters may start at the same time
    mapfile -t missing < <(missing_packages)
    if ((${#missing[@]})); then
        command -v apt-get >/dev/null || fail "not installed, and no apt-get to install it: ${missing[*]}"
        # In run level 1 the packages do not start their services.
        (apt-get update -qq &&
            RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}") \
            >"$FOLDER/apt.log" 2>&1 </dev/null || fail "apt-get could not install ${missing[*]}; see $FOLDER/apt.log"
    fi
    exec {lock}>&-
}

free_ports() { # print the first of four consecutive free ports, below the range that the kernel assigns
    local first port
    while :; do
        first=$((20000 + RANDOM % 3000 * 4))
        for port in {0..3}; do
            if (: >"/dev/tcp/127.0.0.1/$((first + port))") 2>/dev/null; then continue 2; fi
        done
        echo "$first"
        return
    done
}

write_configuration() {
    local port accounting=accounting_storage/none
    port=$(free_ports)
    if [[ $ACCOUNTING != none ]]; then accounting=accounting_storage/slurmdbd; fi
    mkdir -p "$FOLDER"/{state,spool}
    # The GPUs of the nodes must be device files: two more of /dev/null.
    mknod "$FOLDER/gpu0" c 1 3 && mknod "$FOLDER/gpu1" c 1 3
    head -c 1024 /dev/urandom >"$FOLDER/munge.key"
    # Lightning's DDP takes the first node's name as its main address.
    echo '127.0.0.1 localhost head n0 n1' >"$FOLDER/hosts"

    cat >"$FOLDER/slurm.conf" <<END
ClusterName=test
SlurmctldHost=head(127.0.0.1)
SlurmctldPort=$port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A requeued job waits until its first credential has expired (default 120 s).
AuthInfo=socket=$FOLDER/munge.socket,cred_expire=5
# Listen on the loopback interface only.
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny

SlurmctldPidFile=$FOLDER/slurmctld.pid
SlurmctldLogFile=$FOLDER/slurmctld.log
StateSaveLocation=$FOLDER/state
SlurmdPidFile=$FOLDER/%n.slurmd.pid
SlurmdLogFile=$FOLDER/%n.log
SlurmdSpoolDir=$FOLDER/spool/%n

ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
# Nodes may have more CPUs than this machine.
SlurmdParameters=config_overrides
GresTypes=gpu
ReturnToService=2

# The scheduler runs every two seconds instead of every minute, so that requeued jobs start soon.
SchedulerParameters=sched_interval=2,sched_min_interval=0,batch_sched_delay=0,bf_interval=2
# A dead node is detected after 15 to 20 seconds; a lower value does not change that, a higher MessageTimeout does.
SlurmdTimeout=9
MessageTimeout=5
KillWait=3
# Finished jobs stay in squeue --states=all.
MinJobAge=86400

AccountingStorageType=$accounting
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$((port + 1))
AccountingStoragePass=$FOLDER/munge.socket

NodeName=n0 NodeAddr=127.0.0.1 Port=$((port + 2)) CPUs=4 RealMemory=16000 Gres=gpu:2
NodeName=n1 NodeAddr=127.0.0.1 Port=$((port + 3)) CPUs=4 RealMemory=16000 Gres=gpu:2
PartitionName=debug Nodes=n0,n1 Default=YES
END

    echo "NodeName=n[0-1] Name=gpu File=$FOLDER/gpu[0-1]" >"$FOLDER/gres.conf"

    cat >"$FOLDER/slurmdbd.conf" <<END
AuthType=auth/munge
AuthInfo=socket=$FOLDER/munge.socket
DbdHost=head
DbdAddr=127.0.0.1
DbdPort=$((port + 1))
SlurmUser=root
LogFile=$FOLDER/slurmdbd.log
PidFile=$FOLDER/slurmdbd.pid
CommunicationParameters=NoInAddrAny
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
END
    chmod 600 "$FOLDER/slurmdbd.conf"
}

power_on() { # MACHINE: start its first process, which only reaps the others
    [[ ! -e $FOLDER/$1.pid ]] || return 0
    # The process id is read from the outer /proc, which is mounted over afterwards.
    # shellcheck disable=SC2016
    unshare --uts --mount --pid --fork bash -c '
        read -r pid _ </proc/self/stat
        hostname "$2" && mount --bind "$1/hosts" /etc/hosts && mount -t proc proc /proc || exit
        echo "$pid" >"$1/$2.pid.new" && mv "$1/$2.pid.new" "$1/$2.pid"
        sleep "$3"
        exit' machine "$FOLDER" "$1" $LIFETIME &>"$FOLDER/$1.machine.log" </dev/null &
    wait_for 10 "namespaces for $1 (are they permitted here?)" test -e "$FOLDER/$1.pid"
}

power_off() { # MACHINE: kill it, and wait until all its processes have ended
    local pid
    pid=$(cat "$FOLDER/$1.pid" 2>/dev/null) || return 0
    # If the machine has ended by itself, another process may have its process id now.
    if grep -qszxF "$FOLDER" "/proc/$pid/cmdline"; then
        kill -9 "$pid" 2>/dev/null || true
        wait_for 10 "end of $1" is_gone "$pid"
    fi
    rm -f "$FOLDER/$1.pid"
}

is_gone() { # PID: ended or a zombie, which the first process of a machine becomes after all others in it have ended
    ! grep -qs '^State:[[:space:]]*[^ZX]' "/proc/$1/status"
}

on() { # MACHINE COMMAND...
    local machine=$1
    shift
    nsenter --target "$(cat "$FOLDER/$machine.pid")" --root --uts --mount --pid -- "$@"
}

start_accounting() {
    # The socket is private, so the server needs no users, and its data need not survive a power loss.
    local server=(mariadbd --no-defaults --user=root --datadir="$FOLDER/database" --tmpdir="$FOLDER/tmp"
        --skip-grant-tables --skip-networking --innodb-flush-log-at-trx-commit=0 --innodb-log-file-size=8M)
    mkdir "$FOLDER"/{database,tmp}
    (printf '%s\n' 'CREATE DATABASE mysql;' 'USE mysql;' && cat /usr/share/mysql/mysql_system_tables.sql) |
        "${server[@]}" --bootstrap &>"$FOLDER/mariadb.log" ||
        fail "the database could not be created; see $FOLDER/mariadb.log"
    on head setsid --fork "${server[@]}" --socket="$FOLDER/mariadb.socket" &>>"$FOLDER/mariadb.log" </dev/null
    wait_for 30 'MariaDB' test -S "$FOLDER/mariadb.socket"
    on head env MYSQL_UNIX_PORT="$FOLDER/mariadb.socket" SLURM_CONF="$SLURM_CONF" slurmdbd
    wait_for 30 'slurmdbd' sacctmgr -i show cluster
    sacctmgr -iQ add cluster test >/dev/null || fail 'slurmdbd does not accept the cluster'
}

start() {
    ((EUID == 0)) || fail 'needs root'
    ((${#FOLDER} <= 90)) || fail "the path of the folder is too long for the sockets in it: $FOLDER"
    [[ ! -e $FOLDER/slurm.conf ]] || fail "$FOLDER already contains a cluster"
    mkdir -p "$FOLDER"
    trap stop EXIT
    install_packages
    write_configuration
    power_on head
    # --force: munged would refuse a folder that other users cannot read.
    on head munged --force --socket="$FOLDER/munge.socket" --key-file="$FOLDER/munge.key" \
        --log-file="$FOLDER/munged.log" --pid-file="$FOLDER/munged.pid" --seed-file="$FOLDER/munged.seed" \
        2>/dev/null || fail "munged does not start; see $FOLDER/munged.log"
    if [[ $ACCOUNTING != none ]]; then start_accounting; fi
    on head slurmctld -f "$SLURM_CONF" -c || fail "slurmctld does not start; see $FOLDER/slurmctld.log"
    boot n0
    boot n1
    if [[ $ACCOUNTING != none ]]; then wait_for 30 'sacct' sacct; fi
    trap - EXIT
    echo "export SLURM_CONF=$SLURM_CONF"
}

boot() { # NODE
    power_on "$1"
    on "$1" slurmd -N "$1" -f "$SLURM_CONF" || fail "slurmd does not start on $1; see $FOLDER/$1.log"
    wait_for 30 "idle node $1" is_up "$1"
}

is_up() { # NODE
    [[ $(sinfo --noheader --nodes="$1" --format=%T) =~ ^(idle|mixed|allocated)$ ]]
}

stop() {
    local machine
    for machine in n0 n1 head; do power_off "$machine"; done
    if [[ -e $SLURM_CONF ]]; then rm -rf "$FOLDER/database"; fi  # 100 MB; the logs are kept
}

case ${1-} in start | stop) (($# == 2)) ;; kill | kill-daemon | boot) (($# == 3)) ;; *) false ;; esac ||
    fail 'usage: cluster.sh start|stop FOLDER, or cluster.sh kill|kill-daemon|boot FOLDER NODE'
FOLDER=$(realpath -m "$2")
ACCOUNTING=${ACCOUNTING-slurmdbd}
export SLURM_CONF=$FOLDER/slurm.conf
case $1 in
    start | stop) "$1" ;;
    kill) power_off "$3" ;;
    # The process id is that in the node's namespace.
    kill-daemon) on "$3" kill -9 "$(cat "$FOLDER/$3.slurmd.pid")" ;;
    boot) boot "$3" ;;
esac
