// Starts the proxy of srt (npm @anthropic-ai/sandbox-runtime) as srt does for its
// commands, and serves until standard input ends: the peer of our egress process.
//
//	node proxy.mjs PACKAGE SETTINGS      prints {"port": N, "token": "...", "ca": "PEM, or empty"}
import path from 'node:path';
import { pathToFileURL } from 'node:url';

const [folder, settings] = process.argv.slice(2);
const { SandboxManager } = await import(pathToFileURL(path.join(folder, 'dist', 'index.js')));
await SandboxManager.initialize(JSON.parse(settings));
const where = { port: SandboxManager.getProxyPort(), token: SandboxManager.getProxyAuthToken(), ca: SandboxManager.getMitmCA()?.certPem ?? '' };
process.stdout.write(JSON.stringify(where) + '\n');
process.stdin.resume();
process.stdin.on('end', async () => {
	await SandboxManager.reset();
	process.exit(0);
});
