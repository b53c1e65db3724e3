#!/usr/bin/env python3
"""Runs dmq, JetStream and, where java and mvn are there, Apache Kafka one after another on this machine and disk, and prints
the table that stands in docs/benchmarks.md.

Every peer in its best documented mode, every one with its own client, incompressible records, no compression, one partition.
Rounds alternate between the peers, and medians of the rounds make the ratios. What no ratio is wanted of runs in the first round
alone. What is not fair is said below the table.

    make compare                              # five rounds of a minute: it takes two hours
    make compare ARGS="--seconds 10 --rounds 3"
    make compare ARGS="--json rounds.json"    # keeps every round there, and goes on where an earlier run ended
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KAFKA = "4.1.1"
SIZES = (1024, 100)
IN_FLIGHT = 4000
# What each of dmq's storage nodes leaves in the page cache of what it wrote last (0: all).
PAGE_CACHE_BYTES = 1 << 30
# What is read back, in some ten seconds: the peers have it in the page cache, dmq on its disk but for the last PAGE_CACHE_BYTES.
READ_BYTES = 8 << 30
POM = f"""<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>
<groupId>dmq</groupId><artifactId>compare</artifactId><version>1</version><dependencies>
<dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{KAFKA}</version></dependency>
<dependency><groupId>org.apache.kafka</groupId><artifactId>kafka-tools</artifactId><version>{KAFKA}</version></dependency>
<dependency><groupId>org.slf4j</groupId><artifactId>slf4j-nop</artifactId><version>1.7.36</version></dependency>
</dependencies></project>
"""


class Run:
    """Processes in a folder of their own, ended and removed at the end."""

    def __init__(self, data: Path) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="compare-", dir=data))
        self.processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.send_signal(signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self, name: str, *command: str, **more: object) -> None:
        log = open(self.folder / f"{name}.log", "wb")  # noqa: SIM115: it is the process's.
        self.processes.append(subprocess.Popen(command, stdout=log, stderr=log, **more))  # type: ignore[call-overload]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="how long each run of a peer produces")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", type=Path, default=Path(tempfile.gettempdir()), help="chooses the disk")
    parser.add_argument("--skip", default="", help="dmq, jetstream or kafka, separated by commas")
    parser.add_argument("--json", type=Path, help="keep all rounds there, and go on from what it has")
    args = parser.parse_args()
    build()
    kafka = None if "kafka" in args.skip else bring_kafka()
    results: dict[str, list[float]] = {}
    # How many records dmq needs for so many seconds: measured with a first short run.
    rates: dict[tuple[int, int], float] = {}
    begun = 0
    # Rounds of other terms are not comparable.
    terms = {"seconds": args.seconds, "skip": args.skip, "data": str(args.data), "pageCacheBytes": PAGE_CACHE_BYTES}
    if args.json and args.json.exists():
        kept = json.loads(args.json.read_text(encoding="utf-8"))
        if kept.get("terms") != terms:
            raise SystemExit(f"{args.json} has rounds of {kept.get('terms')}, not of {terms}: take another file")
        results, begun = kept["results"], kept["rounds"]

    def note(name: str, value: float | None) -> None:
        if value is not None:
            results.setdefault(name, []).append(value)
            print(f"  {name}: {value:,.0f}", file=sys.stderr, flush=True)

    for number in range(begun, args.rounds):
        print(f"round {number + 1} of {args.rounds}", file=sys.stderr, flush=True)
        for replicas in (1, 3):
            for size in SIZES:
                compared(args, kafka, replicas, size, number == 0, rates, note)
        if args.json:
            # Only whole rounds: one that is broken off is taken anew.
            aside = args.json.with_suffix(".tmp")
            kept = {"terms": terms, "rounds": number + 1, "results": results}
            aside.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
            aside.replace(args.json)
    print(table(results, args))
    return 0


def compared(
    args: argparse.Namespace, kafka: Path | None, replicas: int, size: int, first: bool,
    rates: dict[tuple[int, int], float], note: Callable[[str, float | None], None],
) -> None:  # fmt: skip
    """One column of one round."""
    key = f"R{replicas} {size} B"
    # Reading is compared where there is one replica; more of them change nothing for who reads.
    to_read = READ_BYTES // size if replicas == 1 else 0
    if "dmq" not in args.skip:
        rate = rates.get((replicas, size)) or dmq(args.data, replicas, size, 300_000, 0)["produced"]
        run = dmq(args.data, replicas, size, int(rate * args.seconds), to_read)
        rates[replicas, size] = run["produced"]
        note(f"dmq {key}", run["produced"])
        note(f"dmq {key} read", run.get("consumed"))
        note(f"hop {key}", run.get("hop"))
    if "jetstream" not in args.skip:
        run = jetstream(args.data, replicas, size, args.seconds, "default", to_read)
        note(f"JetStream default {key}", run["produced"])
        note(f"JetStream {key} read", run["consumed"])
        if first or (replicas, size) == (1, SIZES[0]):
            run = jetstream(args.data, replicas, size, args.seconds, "always", 0)
            note(f"JetStream always {key}", run["produced"])
    if kafka is not None:
        run = run_kafka(kafka, args.data, replicas, size, args.seconds, "", to_read)
        note(f"Kafka {key}", run["produced"])
        note(f"Kafka {key} read", run.get("consumed"))
        if first and replicas == 1:
            run = run_kafka(kafka, args.data, replicas, size, args.seconds, "1", 0)
            note(f"Kafka flush.messages=1 {key}", run["produced"])


def build() -> None:
    command = ["cargo", "build", "--release", "--locked", "--bin", "dmq", "--example", "jetstream_bench"]
    subprocess.run(command, cwd=ROOT, check=True, stdout=sys.stderr)


def nats_server() -> str:
    found = subprocess.run([sys.executable, ROOT / "tools" / "nats-server.py"], check=True, capture_output=True, text=True)
    return found.stdout.strip()


def dmq(data: Path, replicas: int, size: int, records: int, to_read: int) -> dict[str, float]:
    common = ["--output", "json", "--data", str(data), "--nats-server", nats_server(), "--partitions", "1"]
    size_of = ["--size", str(size)]
    binary = str(ROOT / "target" / "release" / "dmq")
    env = os.environ | {"DMQ_PAGE_CACHE_BYTES": str(PAGE_CACHE_BYTES)}

    def figures(*command: str) -> list[dict[str, object]]:
        done = subprocess.run([binary, "bench", *command], check=True, capture_output=True, text=True, env=env)
        return json.loads(done.stdout)["figures"]

    def rate(found: list[dict[str, object]], word: str, of: str = "value") -> float:
        first = next(figure for figure in found if str(figure["name"]).startswith(word) and figure["unit"] == "/s")
        return float(first[of])  # type: ignore[arg-type]

    produced = figures("produce", "--replicas", str(replicas), "--single", "0", "--rounds", "1", "--records", str(records), *size_of, *common)
    run = {"produced": rate(produced, "records acknowledged")}
    if to_read:
        consumed = figures("consume", "--rounds", "3", "--records", str(min(records, to_read)), *size_of, *common)
        run |= {"consumed": rate(consumed, "records read"), "hop": rate(consumed, "records read", "floor")}
    return run


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def until_open(port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise SystemExit(f"nothing listens on port {port}")


def jetstream(data: Path, replicas: int, size: int, seconds: float, mode: str, to_read: int) -> dict[str, float]:
    with Run(data) as run:
        ports = [(free_port(), free_port()) for _ in range(replicas)]
        routes = ", ".join(f'"nats://127.0.0.1:{route}"' for _, route in ports)
        for number, (client, route) in enumerate(ports):
            always = "sync_interval: always" if mode == "always" else ""
            cluster = f"cluster {{ name: peer, listen: 127.0.0.1:{route}, routes: [{routes}] }}" if replicas > 1 else ""
            config = run.folder / f"{number}.conf"
            store = run.folder / f"store-{number}"
            text = f'server_name: peer-{number}\nlisten: 127.0.0.1:{client}\njetstream {{ store_dir: "{store}"\n{always} }}\n{cluster}\n'
            config.write_text(text, encoding="utf-8")
            # As the one that dmq runs on has it.
            run.start(f"nats-{number}", nats_server(), "-c", str(config), env=os.environ | {"GOGC": "400"})
        for client, _ in ports:
            until_open(client)
        command = [str(ROOT / "target" / "release" / "examples" / "jetstream_bench"), f"nats://127.0.0.1:{ports[0][0]}"]
        command += [str(replicas), str(size), str(seconds), str(IN_FLIGHT), str(to_read)]
        for _ in range(20):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                return json.loads(done.stdout)
            # A cluster takes a moment to choose who leads JetStream.
            time.sleep(1)
        raise SystemExit(f"JetStream: {done.stderr}")


def bring_kafka() -> Path | None:
    if shutil.which("java") is None or shutil.which("mvn") is None:
        print("no java or no mvn: Kafka is left out", file=sys.stderr)
        return None
    libs = ROOT / "target" / "compare" / f"kafka-{KAFKA}"
    if not libs.exists():
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "pom.xml").write_text(POM, encoding="utf-8")
            command = ["mvn", "-q", "dependency:copy-dependencies", f"-DoutputDirectory={libs}"]
            subprocess.run(command, cwd=folder, check=True, stdout=sys.stderr)
    return libs


def run_kafka(libs: Path, data: Path, replicas: int, size: int, seconds: float, flush: str, to_read: int) -> dict[str, float]:
    java = ["java", "-Xmx1g", "-cp", f"{libs}/*"]
    with Run(data) as run:
        ports = [(free_port(), free_port()) for _ in range(replicas)]
        voters = ",".join(f"{number}@127.0.0.1:{control}" for number, (_, control) in enumerate(ports))
        cluster = "MkU3OEVBNTcwNTJENDM2Qk"
        for number, (client, control) in enumerate(ports):
            lines = [
                "process.roles=broker,controller", f"node.id={number}", f"controller.quorum.voters={voters}",
                f"listeners=PLAINTEXT://127.0.0.1:{client},CONTROLLER://127.0.0.1:{control}",
                f"advertised.listeners=PLAINTEXT://127.0.0.1:{client}", "controller.listener.names=CONTROLLER",
                f"log.dirs={run.folder}/kafka-{number}", "offsets.topic.replication.factor=1",
                "num.network.threads=3", "num.io.threads=8",
            ]  # fmt: skip
            if flush:
                lines.append(f"log.flush.interval.messages={flush}")
            config = run.folder / f"{number}.properties"
            config.write_text("\n".join(lines) + "\n", encoding="utf-8")
            tool = [*java, "kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(config)]
            subprocess.run(tool, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            run.start(f"kafka-{number}", *java, "kafka.Kafka", str(config))
        for client, _ in ports:
            until_open(client)
        servers = ",".join(f"127.0.0.1:{client}" for client, _ in ports)
        topic = [*java, "org.apache.kafka.tools.TopicCommand", "--bootstrap-server", servers, "--create", "--topic", "peer"]
        topic += ["--partitions", "1", "--replication-factor", str(replicas)]
        for attempt in range(30):
            if subprocess.run(topic, capture_output=True, check=False).returncode == 0:
                break
            if attempt == 29:
                raise SystemExit("Kafka made no topic")
            time.sleep(1)

        def produce(records: int) -> float:
            command = [*java, "org.apache.kafka.tools.ProducerPerformance", "--topic", "peer", "--num-records", str(records)]
            command += ["--record-size", str(size), "--throughput", "-1", "--producer-props"]
            command += [f"bootstrap.servers={servers}", "acks=all", "batch.size=131072", "linger.ms=5"]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            return float(re.findall(r"([\d.]+) records/sec", done.stdout)[-1])

        # The first run warms the brokers up, and says how many records the second one needs.
        warm = 200_000 if size > 500 else 1_000_000
        records = max(int(produce(warm) * seconds), warm)
        rate = produce(records)
        if not to_read:
            return {"produced": rate}
        consume = [*java, "org.apache.kafka.tools.ConsumerPerformance", "--bootstrap-server", servers, "--topic", "peer"]
        consume += ["--messages", str(min(records, to_read)), "--timeout", "60000"]
        done = subprocess.run(consume, check=True, capture_output=True, text=True)
        # start, end, MB, MB/s, records, records/s, rebalance ms, fetch ms, MB/s and records/s of the fetch alone.
        return {"produced": rate, "consumed": float(done.stdout.strip().splitlines()[-1].split(",")[9])}


def table(results: dict[str, list[float]], args: argparse.Namespace) -> str:
    median = {name: statistics.median(values) for name, values in results.items()}
    lines = [
        f"One partition, {args.rounds} rounds of {args.seconds:g} s; medians, records a second (lowest to highest round).",
        "", "| | " + " | ".join(f"R{r} {s} B" for r in (1, 3) for s in SIZES) + " |", "| --- |" + " --- |" * 4,
    ]  # fmt: skip
    rows = [
        ("dmq, fsync on every replica before the ack", "dmq {}"),
        ("JetStream, default (no fsync before the ack)", "JetStream default {}"),
        ("JetStream, `sync_interval: always`", "JetStream always {}"),
        (f"Kafka {KAFKA}, default (no fsync)", "Kafka {}"),
        (f"Kafka {KAFKA}, `log.flush.interval.messages=1`", "Kafka flush.messages=1 {}"),
        ("read back: dmq `Consumer`", "dmq {} read"),
        ("what one NATS hop carries: requests answered from memory, 900,000 bytes each", "hop {}"),
        ("read back: JetStream pull consumer", "JetStream {} read"),
        ("read back: Kafka ConsumerPerformance, without its start", "Kafka {} read"),
    ]
    keys = [f"R{r} {s} B" for r in (1, 3) for s in SIZES]
    for title, form in rows:
        cells = []
        for key in keys:
            values = results.get(form.format(key))
            cells.append(f"{statistics.median(values):,.0f} ({min(values):,.0f}–{max(values):,.0f})" if values else "–")
        if any(cell != "–" for cell in cells):
            lines.append(f"| {title} | " + " | ".join(cells) + " |")
    for title, ours, theirs in [
        ("dmq ÷ JetStream default", "dmq {}", "JetStream default {}"),
        ("dmq ÷ JetStream always", "dmq {}", "JetStream always {}"),
        ("dmq ÷ Kafka default", "dmq {}", "Kafka {}"),
        ("read: dmq ÷ JetStream", "dmq {} read", "JetStream {} read"),
        ("read: dmq ÷ Kafka", "dmq {} read", "Kafka {} read"),
    ]:
        cells = []
        for key in keys:
            pair = median.get(ours.format(key)), median.get(theirs.format(key))
            cells.append(f"**{pair[0] / pair[1]:.2f}**" if pair[0] and pair[1] else "–")
        if any(cell != "–" for cell in cells):
            lines.append(f"| {title} | " + " | ".join(cells) + " |")
    version = subprocess.run([nats_server(), "--version"], capture_output=True, text=True, check=True).stdout.strip()
    lines += [
        "", f"{os.cpu_count()} cores, {os.uname().release}, {version}, Kafka {KAFKA} with 1 GB of heap a process. In flight: dmq "
        "5 batches a partition of what its producer takes by default, JetStream 4,000 publishes, Kafka 5 requests of 128 KiB "
        "batches. All servers and clients share the cores, and every nats-server has GOGC=400. dmq's storage nodes have "
        f"`page_cache_bytes={PAGE_CACHE_BYTES}`, so that most of what is read back comes from their disks, and the peers' from memory.",
    ]  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
