import { Counter, Gauge, Histogram, Registry } from "prom-client";
import type { MigrationResult } from "./outcome.js";

/** Seconds: from one lost packet of a fast sender to a TCP time-out. */
const GAP_BUCKETS = [0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 3];

/** Names after RFC 2006 where it has one. Labels are reasons: their number is bounded. */
export class Metrics {
  readonly registry = new Registry();
  readonly registrations = new Counter({ name: "careof_registrations_total", help: "Claims and denials of host agents, by reason", labelNames: ["reason"], registers: [this.registry] });
  readonly connections = new Counter({ name: "careof_agent_connections_total", help: "Connections of host agents, by reason", labelNames: ["reason"], registers: [this.registry] });
  readonly heartbeats = new Counter({ name: "careof_heartbeats_total", help: "Heartbeats of guests, by reason", labelNames: ["reason"], registers: [this.registry] });
  readonly migrations = new Counter({ name: "careof_migrations_total", help: "Migrations, by result and reason", labelNames: ["result", "reason"], registers: [this.registry] });
  readonly alarms = new Counter({ name: "careof_alarms_total", help: "What wants a person's attention, by kind", labelNames: ["kind"], registers: [this.registry] });
  readonly gratuitousArps = new Counter({ name: "careof_gratuitous_arps_sent_total", help: "haGratuitiousARPsSent of RFC 2006: for VMs that left (away) and came home (home)", labelNames: ["what"], registers: [this.registry] });
  readonly arrivalsIgnored = new Counter({ name: "careof_home_lan_arrivals_ignored_total", help: "Announcements on the home LAN that led to nothing: a storm of them that was not looked at (storm), of a VM that says the same again and again (repeated)", labelNames: ["why"], registers: [this.registry] });
  readonly uplinkLosses = new Counter({ name: "careof_uplink_losses_total", help: "Times that the uplink may have lost what was set on it and it was set again, by reason: uplink-down, uplink-gone, address-gone, news-missed", labelNames: ["reason"], registers: [this.registry] });
  readonly answered = new Gauge({ name: "careof_proxied_addresses", help: "Home addresses that are answered for on the home LAN", registers: [this.registry] });
  readonly bindings: Gauge;
  readonly hosts: Gauge;
  readonly pause = new Histogram({ name: "careof_pause_seconds", help: "Hypervisor's STOP to RESUME", buckets: GAP_BUCKETS, registers: [this.registry] });
  readonly gapDown = new Histogram({ name: "careof_gap_down_seconds", help: "Time in which the guest ran and could not receive", buckets: GAP_BUCKETS, registers: [this.registry] });
  readonly overflowed = new Counter({ name: "careof_handover_overflowed_packets_total", help: "Packets that found the queue of a VM's new port full while the VM stood", registers: [this.registry] });
  readonly heldLost = new Counter({ name: "careof_external_lost_packets_total", help: "Packets that waited at a host for a VM that something else moves, and are lost: they found no room (overflowed), or had waited too long (expired)", labelNames: ["why"], registers: [this.registry] });
  readonly undelivered = new Counter({ name: "careof_handover_undelivered_packets_total", help: "Packets that waited at a VM's new port when its move was given up, and are lost", registers: [this.registry] });
  readonly holds = new Counter({ name: "careof_handover_holds_total", help: "Completed migrations, by how the source's gate was opened: led, hold-expired, no-gate, stopped-early, unknown", labelNames: ["hold"], registers: [this.registry] });
  readonly gapUp = new Histogram({ name: "careof_gap_up_seconds", help: "Time in which the guest ran and could not be heard", buckets: GAP_BUCKETS, registers: [this.registry] });

  /** The functions are called when somebody reads the metrics. */
  constructor(read: { readonly bindings: () => ReadonlyMap<string, number>; readonly hosts: () => number }) {
    this.bindings = new Gauge({
      name: "careof_bindings", help: "Bindings, by state", labelNames: ["state"], registers: [this.registry],
      collect(): void {
        this.reset();
        for (const [state, count] of read.bindings()) this.set({ state }, count);
      },
    });
    this.hosts = new Gauge({
      name: "careof_hosts_connected", help: "Host agents that are connected", registers: [this.registry],
      collect(): void { this.set(read.hosts()); },
    });
  }

  migration(result: MigrationResult): void {
    this.migrations.inc({ result: result.result, reason: result.reason });
    this.overflowed.inc(result.overflowed ?? 0);
    this.undelivered.inc(result.undelivered ?? 0);
    if (result.result === "completed") this.holds.inc({ hold: result.hold ?? "unknown" });
    if (result.pauseMs !== null) this.pause.observe(result.pauseMs / 1000);
    if (result.gapDownMs !== null) this.gapDown.observe(result.gapDownMs / 1000);
    if (result.gapUpMs !== null) this.gapUp.observe(result.gapUpMs / 1000);
  }
}
