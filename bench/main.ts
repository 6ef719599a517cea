import { toCareofError } from "../model/errors.js";
import { benchDataplane } from "./dataplane/main.js";
import { benchHandover } from "./handover/main.js";
import { benchMigrate } from "./migrate/main.js";
import { benchRepoint } from "./repoint/main.js";

const USAGE = `usage: npm run bench -- handover --json FILE [--quick] [--only CASE[,CASE…]]
       npm run bench -- migrate --json FILE [--quick] [--only CASE[,CASE…]]
       npm run bench -- dataplane --json FILE [--quick] [--only ipip]
       npm run bench -- repoint --json FILE [--quick]

  handover    moves a guest again and again under numbered traffic and counts what is lost, and how long nothing was heard, beside
              the same migration without any change of network, and moves that somebody else makes; 50 moves a case (external: 100), with
              --quick 5. Cases: udp-1k udp-10k long-pause delay-20ms asymmetric external
  migrate     moves an idle guest, one that writes to its memory as fast as it can and one with a disk of its own, over 1 and 2 channels, in turns with a bare
              QEMU that does the same without careof over the same links, plain and with its own TLS: total time, pause and bytes, and where the time
              goes; 6 moves a case, with --quick 3; --only CASE[,CASE…]: idle busy disk
  dataplane   our tunnels beside plain forwarding, VXLAN and wireguard-go: TCP and 64-byte packets both ways, 15 rounds of each in turn,
              with --quick 8; without --quick also the ipip data plane beside the bare kernel device, in user-mode-linux
              (--only ipip: that alone)
  repoint     how long the kernel takes to send a VM's packets elsewhere, how long a start with 100,000 bindings takes, and whether
              1,000 re-points under traffic lose a packet

Appends to bench/RESULTS.md. Needs root and what \`npm test\` installs.
`;

async function main(args: readonly string[]): Promise<number> {
  const [name, ...rest] = args;
  if (name === "--help" || name === "-h") {
    process.stdout.write(USAGE);
    return 0;
  }
  switch (name) {
    case "handover": return benchHandover(rest);
    case "migrate": return benchMigrate(rest);
    case "dataplane": return benchDataplane(rest);
    case "repoint": return benchRepoint(rest);
    default:
      process.stderr.write(USAGE);
      return 2;
  }
}

main(process.argv.slice(2)).then(
  (code) => { process.exitCode = code; },
  (thrown: unknown) => {
    process.stderr.write(`bench: ${toCareofError(thrown).message}\n`);
    process.exitCode = 1;
  },
);
