#!/usr/bin/env bash
# The real services of the integration tests: Apache Kafka from its published jars, and a Qdrant server if one is on
# the PATH. Everything lies in .cache/services, or in the folder that FEEDLENS_SERVICES_DIR names.
#
# Each takes the services meant (kafka, qdrant); none: both.
#   scripts/services.sh start    starts what is not running, empty; prints KAFKA_BROKERS=... (and QDRANT_URL=...); the
#                                same Kafka serves KAFKA_SASL_BROKERS and KAFKA_MTLS_BROKERS (see scripts/kafka/tls.sh)
#   scripts/services.sh env      prints the same for what is running
#   scripts/services.sh crash    kill -9
#   scripts/services.sh resume   starts what crashed or stopped with the data and on the port that it had
#   scripts/services.sh stop     ends them
#
#   environment=$(scripts/services.sh start) && export $environment && cargo test --release --test it real_kafka
set -euo pipefail
cd "$(dirname "$0")/.."

home="${FEEDLENS_SERVICES_DIR:-$PWD/.cache/services}"
# One copy for all folders.
jars_home="$PWD/.cache/services/kafka"
kafka="$home/kafka"
qdrant="$home/qdrant"
pom="$PWD/scripts/kafka/pom.xml"
first_port="${FEEDLENS_SERVICES_PORT:-19092}"
patience=120

say() { echo "services: $*" >&2; }
fail() {
    say "$*"
    exit 1
}

# Whether the process in this file runs, and is still ours: numbers come again after a reboot.
runs() { [ -s "$1" ] && tr '\0' ' ' 2>/dev/null <"/proc/$(cat "$1")/cmdline" | grep -q -e "$kafka/" -e qdrant; }

# free_ports COUNT: prints the first of so many neighbouring loopback ports that nobody listens on.
free_ports() {
    local first="$first_port" port="$first_port"
    while [ "$port" -lt $((first + $1)) ]; do
        [ "$first" -lt $((first_port + 200)) ] || fail "no free port from $first_port on; set FEEDLENS_SERVICES_PORT"
        if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then first=$((port + 1)); fi
        port=$((port + 1))
    done
    echo "$first"
}

# wait_for NAME PIDFILE LOG COMMAND...: until the command succeeds, as long as the process lives.
wait_for() {
    local name="$1" pid_file="$2" log="$3" deadline=$((SECONDS + patience))
    shift 3
    until "$@"; do
        # Not `runs`: just forked, the process still has the name of this script.
        kill -0 "$(cat "$pid_file")" 2>/dev/null || { tail -n 20 "$log" >&2; fail "$name ended while it started; its log is $log"; }
        [ "$SECONDS" -lt "$deadline" ] || { tail -n 20 "$log" >&2; fail "$name did not answer within $patience s; its log is $log"; }
        sleep 0.2
    done
}

java_serves() {
    local version
    version="$(java -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p' | head -n 1)" || return 1
    [ "${version:-0}" -ge 17 ]
}

need_java_and_maven() {
    java_serves && command -v mvn >/dev/null && return
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "installing Java and Maven (apt-get)"
        {
            apt-get update
            java_serves || apt-get install -y openjdk-17-jre-headless || apt-get install -y openjdk-21-jre-headless
            command -v mvn || apt-get install -y maven
        } >&2 || true
    fi
    java_serves || fail "Java 17 or later is missing; install the package openjdk-17-jre-headless"
    command -v mvn >/dev/null || fail "Maven is missing; install the package maven"
}

# The jars belong to the pom that named them.
fetch_kafka() {
    jars="$jars_home/jars-$(cksum <"$pom" | cut -d ' ' -f 1)"
    [ -e "$jars/.complete" ] && return
    say "fetching Apache Kafka (about 45 MB)"
    rm -rf "$jars_home"/jars*
    mvn -B -q -f "$pom" dependency:copy-dependencies -DincludeScope=runtime -DoutputDirectory="$jars" >&2 ||
        fail "Maven could not fetch Apache Kafka; the reason is above"
    touch "$jars/.complete"
}

# A broker answers an ApiVersions request only when its start is complete.
kafka_answers() {
    local answer
    answer="$(
        exec 2>/dev/null
        exec 3<>"/dev/tcp/127.0.0.1/$1" || exit 1
        printf '\x00\x00\x00\x0a\x00\x12\x00\x00\x00\x00\x00\x01\xff\xff' >&3
        timeout 2 head -c 10 <&3 | od -An -tx1 | tr -d ' \n'
    )" || return 1
    # Length, our correlation id, no error.
    [ "${answer:8:12}" = 000000010000 ]
}

start_kafka() {
    runs "$kafka/pid" && return
    need_java_and_maven
    mkdir -p "$kafka"
    fetch_kafka
    scripts/kafka/tls.sh "$kafka/tls" || fail "the certificates of Kafka could not be made; the reason is above"
    local port
    port="$(free_ports 4)"
    rm -rf "$kafka/data"
    # The session of a broker: after kill -9 it may not come back before its old one is over (9 s by default).
    cat >"$kafka/server.properties" <<PROPERTIES
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:$((port + 1))
listeners=PLAINTEXT://127.0.0.1:$port,CONTROLLER://127.0.0.1:$((port + 1)),SASL://127.0.0.1:$((port + 2)),MTLS://127.0.0.1:$((port + 3))
advertised.listeners=PLAINTEXT://127.0.0.1:$port,SASL://127.0.0.1:$((port + 2)),MTLS://127.0.0.1:$((port + 3))
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL:SASL_SSL,MTLS:SSL
ssl.keystore.type=PEM
ssl.keystore.location=$kafka/tls/broker.pem
ssl.truststore.type=PEM
ssl.truststore.location=$kafka/tls/ca.pem
listener.name.mtls.ssl.client.auth=required
listener.name.sasl.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER
listener.name.sasl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required user_ada="plain-secret";
listener.name.sasl.scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.sasl.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.sasl.oauthbearer.sasl.jaas.config=org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub="broker" unsecuredValidatorRequiredScope="feed";
listener.name.sasl.oauthbearer.connections.max.reauth.ms=60000
listener.name.sasl.scram-sha-512.connections.max.reauth.ms=3000
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS
allow.everyone.if.no.acl.found=true
log.dirs=$kafka/data
auto.create.topics.enable=false
offsets.topic.num.partitions=4
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
group.initial.rebalance.delay.ms=0
log.cleaner.backoff.ms=500
group.min.session.timeout.ms=1000
group.consumer.min.heartbeat.interval.ms=500
group.consumer.heartbeat.interval.ms=500
PROPERTIES
    # Fixed, so that a client that knew an earlier broker is not surprised: the data is new with each start.
    java -cp "$jars/*" kafka.tools.StorageTool format -t ZmVlZGxlbnMtdGVzdHMtMQ -c "$kafka/server.properties" \
        --add-scram 'SCRAM-SHA-256=[name=ada,password=scram-secret]' \
        --add-scram 'SCRAM-SHA-512=[name=ada,password=scram-secret]' \
        >"$kafka/log" 2>&1 || { cat "$kafka/log" >&2; fail "the storage of Kafka could not be formatted"; }
    echo "$port" >"$kafka/port"
    resume_kafka
}

resume_kafka() {
    runs "$kafka/pid" && return
    local port
    port="$(cat "$kafka/port")" || fail "Apache Kafka was never started in $home"
    fetch_kafka
    say "starting Apache Kafka on 127.0.0.1:$port"
    setsid nohup java -Xms128m -Xmx384m -Dlog4j2.level=INFO -cp "$jars/*" kafka.Kafka "$kafka/server.properties" \
        >>"$kafka/log" 2>&1 </dev/null &
    echo $! >"$kafka/pid"
    wait_for "Apache Kafka" "$kafka/pid" "$kafka/log" kafka_answers "$port"
}

qdrant_answers() {
    local answer
    answer="$(
        exec 2>/dev/null
        exec 3<>"/dev/tcp/127.0.0.1/$1" || exit 1
        printf 'GET /readyz HTTP/1.0\r\n\r\n' >&3
        timeout 2 head -n 1 <&3
    )" || return 1
    [[ "$answer" == *" 200 "* ]]
}

start_qdrant() {
    runs "$qdrant/pid" && return
    if ! command -v qdrant >/dev/null; then
        say "NO QDRANT SERVER: there is no \`qdrant\` on the PATH; tests that need the server WILL BE SKIPPED"
        return
    fi
    mkdir -p "$qdrant"
    local port
    port="$(free_ports 2)"
    rm -rf "$qdrant/storage" "$qdrant/snapshots"
    echo "$port" >"$qdrant/port"
    resume_qdrant
}

resume_qdrant() {
    runs "$qdrant/pid" && return
    local port
    port="$(cat "$qdrant/port")" || fail "Qdrant was never started in $home"
    say "starting Qdrant on 127.0.0.1:$port"
    (
        cd "$qdrant"
        export QDRANT__SERVICE__HOST=127.0.0.1 QDRANT__SERVICE__GRPC_PORT="$port" QDRANT__SERVICE__HTTP_PORT=$((port + 1))
        export QDRANT__STORAGE__STORAGE_PATH="$qdrant/storage" QDRANT__STORAGE__SNAPSHOTS_PATH="$qdrant/snapshots"
        export QDRANT__TELEMETRY_DISABLED=true
        setsid nohup qdrant >>"$qdrant/log" 2>&1 </dev/null &
        echo $! >"$qdrant/pid"
    )
    wait_for Qdrant "$qdrant/pid" "$qdrant/log" qdrant_answers "$((port + 1))"
}

print_env() {
    local port
    if runs "$kafka/pid"; then
        port="$(cat "$kafka/port")"
        echo "KAFKA_BROKERS=127.0.0.1:$port"
        echo "KAFKA_SASL_BROKERS=127.0.0.1:$((port + 2))"
        echo "KAFKA_MTLS_BROKERS=127.0.0.1:$((port + 3))"
        echo "KAFKA_TLS_DIR=$kafka/tls"
    fi
    runs "$qdrant/pid" && echo "QDRANT_URL=http://127.0.0.1:$(cat "$qdrant/port")"
    return 0
}

# end_one SERVICE SIGNAL
end_one() {
    local pid_file="$home/$1/pid" pid
    runs "$pid_file" || { rm -f "$pid_file"; return; }
    pid="$(cat "$pid_file")"
    kill "-$2" "$pid"
    local deadline=$((SECONDS + 30))
    while kill -0 "$pid" 2>/dev/null; do
        [ "$SECONDS" -lt "$deadline" ] || { kill -9 "$pid" 2>/dev/null || true; }
        sleep 0.1
    done
    rm -f "$pid_file"
}

usage="use: scripts/services.sh start | env | crash | resume | stop [kafka] [qdrant]"
verb="${1:-}"
[ $# = 0 ] || shift
[ $# != 0 ] || set -- kafka qdrant
for service in "$@"; do
    case "$service" in kafka | qdrant) ;; *) fail "there is no service $service; $usage" ;; esac
    case "$verb" in
    start) "start_$service" ;;
    crash) end_one "$service" KILL ;;
    resume) "resume_$service" ;;
    stop) end_one "$service" TERM ;;
    env) ;;
    *) fail "$usage" ;;
    esac
done
case "$verb" in start | resume | env) print_env ;; esac
