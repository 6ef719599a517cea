import t from "tap";
import { millis } from "../../model/ids.js";
import { MigrationProgress } from "../../cli/migration-progress.js";
import { MovesProgress } from "../../cli/moves-progress.js";
import { migrationReply } from "../../cli/replies.js";
import { ProcessTerminal, type Stream } from "../../cli/terminal.js";
import { moving } from "./scripted-home-agent.js";

interface Written extends Stream {
  text: string;
}

function stream(change: Omit<Stream, "write"> = {}): Written {
  const written: Written = {
    ...change, text: "",
    write: (text) => {
      written.text += text;
    },
  };
  return written;
}

t.test("a pipe has no width, a terminal has its own, and one that does not know it (a serial console) that of an ordinary one", (t) => {
  const { columns, rows, errColumns, outIsLive, errIsLive } = new ProcessTerminal(stream(), stream({ isTTY: true, columns: 60, rows: 20 }));
  t.same({ columns, rows, errColumns, outIsLive, errIsLive }, { columns: null, rows: null, errColumns: 60, outIsLive: false, errIsLive: true });
  for (const unknown of [{ isTTY: true, columns: 0, rows: 0 }, { isTTY: true }]) {
    const serial = new ProcessTerminal(stream(unknown), stream(unknown));
    t.same({ columns: serial.columns, rows: serial.rows, errColumns: serial.errColumns }, { columns: 80, rows: 24, errColumns: 80 });
  }
  t.end();
});

t.test("progress fits the terminal that it is drawn on, also where the result goes into a pipe", (t) => {
  const view = migrationReply.parse({ ...moving, vm: "a-name-that-is-quite-long", migration: "a-name-that-is-quite-long@4" });
  for (const columns of [40, 20]) {
    const stderr = stream({ isTTY: true, columns, rows: 20 });
    const terminal = new ProcessTerminal(stream(), stderr);
    new MigrationProgress(terminal, () => millis(0)).show(view);
    const moves = new MovesProgress(terminal, () => millis(0));
    moves.sum("host-a: 3 of 20 moved, 2 moving, 15 waiting");
    moves.show(view);
    const lines = stderr.text.split("\r\u001b[K").slice(1);
    t.equal(lines.length, 3);
    for (const line of lines) t.ok(line.length > 0 && line.length < columns, `${String(columns)}: ${line}`);
  }
  t.end();
});
