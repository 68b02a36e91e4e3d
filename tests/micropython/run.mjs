// node run.mjs DIRECTORY: copies the package in DIRECTORY into MicroPython's file system and runs its self-test.
// Prints MicroPython's version, then "ok" and the milliseconds it took; or its traceback, and exits with 1.
import { readFileSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { loadMicroPython } from "@micropython/micropython-webassembly-pyscript";

const HEAP_BYTES = 512 * 1024; // as a small board has
const SELF_TEST = `
import gc, sys, time
sys.path.append("/")
from package.provider import self_test
print(sys.version)
gc.collect()
before = time.ticks_ms()
self_test()
print("ok", time.ticks_diff(time.ticks_ms(), before))
`;

const micropython = await loadMicroPython({ heapsize: HEAP_BYTES, stdout: console.log, stderr: console.error });
micropython.FS.mkdir("/package");
for (const name of readdirSync(process.argv[2])) {
  if (name.endsWith(".py")) micropython.FS.writeFile(`/package/${name}`, readFileSync(join(process.argv[2], name)));
}
try {
  micropython.runPython(SELF_TEST);
} catch (error) {
  console.error(error.message); // uncaught, node would print 100 KB of minified source before it
  process.exitCode = 1;
}
