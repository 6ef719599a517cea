import { createHash, randomBytes } from "node:crypto";
import { closeSync, fsyncSync, openSync, renameSync, rmSync, writeSync } from "node:fs";
import { Command } from "commander";
import { CareofError, toCareofError } from "../../model/errors.js";
import type { HostId, VmId } from "../../model/ids.js";
import { KEY_BYTES } from "../../proto/heartbeat-key.js";
import { hostArgument, outputOption, show, vmArgument, type Context, type Output } from "../context.js";
import { facts } from "../table.js";

const TOKEN_BYTES = 32;
/** Only the owner reads a secret. */
const MODE = 0o600;

interface KeygenOptions {
  readonly output: Output;
  readonly out?: string;
  readonly force: boolean;
}

export function keygenCommand(context: Context): Command {
  return new Command("keygen")
    .description("make the secret of a host or of a VM")
    .addCommand(forHost(context))
    .addCommand(forVm(context))
    .addHelpText("after", "\nExamples:\n  careof keygen host host-a\n  careof keygen host host-a --out host.token\n  careof keygen vm web1 --out /etc/careof/web1.key");
}

function forHost(context: Context): Command {
  return new Command("host")
    .description("a host's token, for its own tokenFile, and the token's hash, for the home agent's configuration")
    .argument("<host>", "name of the host", hostArgument)
    .option("--out <file>", "write the token there (mode 0600) instead of showing it")
    .option("--force", "overwrite the file", false)
    .addOption(outputOption())
    .action((host: HostId, options: KeygenOptions) => {
      const token = randomBytes(TOKEN_BYTES).toString("base64url");
      const tokenHash = createHash("sha256").update(token).digest("hex");
      if (options.out !== undefined) writeSecret(options.out, token, options.force);
      const shown = options.out === undefined ? { token } : { tokenFile: options.out };
      show(context, options, { host, ...shown, tokenHash }, () => facts([
        ["token", options.out === undefined ? token : `in ${options.out}, which only its owner can read`],
        ["tokenHash", tokenHash],
      ]) + `\nThe token belongs into the tokenFile of ${host} (mode 0600), the hash into the home agent's file:\n  hosts:\n    - { name: ${host}, careOf: [ADDRESS], tokenHash: "${tokenHash}" }\n`);
    });
}

function forVm(context: Context): Command {
  return new Command("vm")
    .description("the key with which a guest signs its heartbeats, as 64 hexadecimal digits in a file (mode 0600)")
    .argument("<vm>", "name of the VM", vmArgument)
    .option("--out <file>", "where to write it (default: VM.key)")
    .option("--force", "overwrite the file; a guest with the old key is not believed any more", false)
    .addOption(outputOption())
    .action((vm: VmId, options: KeygenOptions) => {
      const keyFile = options.out ?? `${vm}.key`;
      writeSecret(keyFile, randomBytes(KEY_BYTES).toString("hex"), options.force);
      show(context, options, { vm, keyFile }, () => `the key of ${vm} is in ${keyFile}: name it as keyFile in the home agent's configuration, and copy it into the guest\n`);
    });
}

/** Never readable for others, never half written, and never over another one unless `force`. @throws CareofError `file-exists`, `cannot-write` */
function writeSecret(file: string, secret: string, force: boolean): void {
  const target = force ? `${file}.new` : file;
  if (force) rmSync(target, { force: true });
  let descriptor: number;
  try {
    descriptor = openSync(target, "wx", MODE);
  } catch (thrown) {
    if (thrown instanceof Error && "code" in thrown && thrown.code === "EEXIST") throw new CareofError("file-exists", `${file} is there already; --force overwrites it`, { cause: thrown });
    throw new CareofError("cannot-write", `cannot write ${file}: ${toCareofError(thrown).message}`, { cause: thrown });
  }
  try {
    writeSync(descriptor, `${secret}\n`);
    fsyncSync(descriptor);
  } finally {
    closeSync(descriptor);
  }
  if (force) renameSync(target, file);
}
