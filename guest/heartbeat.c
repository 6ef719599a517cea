/*
 * heartbeat: tells the home agent, through the host's gateway or directly, that this guest lives.
 *
 * One HeartbeatEnvelope (proto/careof.proto, proto/README.md) per UDP datagram every interval. The tag is HMAC-SHA256 over "careof-hb-v1" and the exact
 * bytes of the body; an answer's covers "careof-ha-v1" and its body. The nonce of the last verified answer is echoed, so that the home agent knows a heartbeat
 * for a fresh one without keeping anything on disk; after "stale-nonce" the next heartbeat goes at once.
 *
 * Depends on libc alone. Build: gcc -O2 -static -Wall -Wextra -Werror -o heartbeat heartbeat.c
 */
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MAX_ENVELOPE = 512, ID_BYTES = 16, KEY_BYTES = 32, TAG_BYTES = 32, BLOCK = 64, MAX_NAME = 63 };
enum { DEFAULT_INTERVAL_MS = 500, MIN_INTERVAL_MS = 10, MAX_INTERVAL_MS = 3600000, ONCE_WAIT_MS = 1000, MAX_RESENDS = 3 };

/* ---- SHA-256 (FIPS 180-4) and HMAC (RFC 2104) ------------------------------------------------------------------------------ */

static const uint32_t K[64] = {
	0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be,
	0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa,
	0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85,
	0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3,
	0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f,
	0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static uint32_t rotated(uint32_t x, int n) { return x >> n | x << (32 - n); }

static void sha256_block(uint32_t state[8], const uint8_t *block)
{
	uint32_t w[64], s[8];
	for (int i = 0; i < 16; i++)
		w[i] = (uint32_t)block[4 * i] << 24 | (uint32_t)block[4 * i + 1] << 16 | (uint32_t)block[4 * i + 2] << 8 | block[4 * i + 3];
	for (int i = 16; i < 64; i++)
		w[i] = w[i - 16] + (rotated(w[i - 15], 7) ^ rotated(w[i - 15], 18) ^ w[i - 15] >> 3) + w[i - 7] +
		       (rotated(w[i - 2], 17) ^ rotated(w[i - 2], 19) ^ w[i - 2] >> 10);
	memcpy(s, state, sizeof s);
	for (int i = 0; i < 64; i++) {
		uint32_t t1 = s[7] + (rotated(s[4], 6) ^ rotated(s[4], 11) ^ rotated(s[4], 25)) + ((s[4] & s[5]) ^ (~s[4] & s[6])) + K[i] + w[i];
		uint32_t t2 = (rotated(s[0], 2) ^ rotated(s[0], 13) ^ rotated(s[0], 22)) + ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
		memmove(s + 1, s, 7 * sizeof *s);
		s[4] += t1;
		s[0] = t1 + t2;
	}
	for (int i = 0; i < 8; i++)
		state[i] += s[i];
}

/* Of everything that is hashed here: a block of padded key and less than an envelope. */
static void sha256(const uint8_t *data, size_t length, uint8_t out[TAG_BYTES])
{
	uint32_t state[8] = { 0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19 };
	uint8_t tail[2 * BLOCK] = { 0 };
	size_t whole = length / BLOCK * BLOCK, rest = length - whole, end = rest < BLOCK - 8 ? BLOCK : 2 * BLOCK;
	for (size_t i = 0; i < whole; i += BLOCK)
		sha256_block(state, data + i);
	memcpy(tail, data + whole, rest);
	tail[rest] = 0x80;
	for (int i = 0; i < 8; i++)
		tail[end - 1 - (size_t)i] = (uint8_t)((uint64_t)length * 8 >> (8 * i));
	for (size_t i = 0; i < end; i += BLOCK)
		sha256_block(state, tail + i);
	for (int i = 0; i < TAG_BYTES; i++)
		out[i] = (uint8_t)(state[i / 4] >> (24 - 8 * (i % 4)));
}

/* HMAC-SHA256(key, domain || body); `length` is at most MAX_ENVELOPE. */
static void tag_of(const uint8_t key[KEY_BYTES], const char *domain, const uint8_t *body, size_t length, uint8_t out[TAG_BYTES])
{
	uint8_t inner[BLOCK + 16 + MAX_ENVELOPE], outer[BLOCK + TAG_BYTES];
	size_t prefix = strlen(domain);
	memset(inner, 0x36, BLOCK);
	memset(outer, 0x5c, BLOCK);
	for (int i = 0; i < KEY_BYTES; i++) {
		inner[i] ^= key[i];
		outer[i] ^= key[i];
	}
	memcpy(inner + BLOCK, domain, prefix);
	memcpy(inner + BLOCK + prefix, body, length);
	sha256(inner, BLOCK + prefix + length, outer + BLOCK);
	sha256(outer, sizeof outer, out);
}

/* ---- protobuf ------------------------------------------------------------------------------------------------------------------ */

enum { VARINT = 0, FIXED64 = 1, BYTES = 2, FIXED32 = 5 };

static size_t put_varint(uint8_t *at, uint64_t value)
{
	size_t n = 0;
	for (; value >= 0x80; value >>= 7)
		at[n++] = (uint8_t)(value | 0x80);
	at[n++] = (uint8_t)value;
	return n;
}

/* proto3 leaves a zero out. */
static size_t put_number(uint8_t *at, int field, uint64_t value)
{
	if (value == 0)
		return 0;
	at[0] = (uint8_t)(field << 3 | VARINT);
	return 1 + put_varint(at + 1, value);
}

static size_t put_bytes(uint8_t *at, int field, const void *data, size_t length)
{
	at[0] = (uint8_t)(field << 3 | BYTES);
	size_t n = 1 + put_varint(at + 1, length);
	memcpy(at + n, data, length);
	return n + length;
}

struct reader { const uint8_t *at, *end; };
struct field { uint64_t number, value; int type; const uint8_t *data; };

static int get_varint(struct reader *in, uint64_t *value)
{
	*value = 0;
	for (int shift = 0; shift < 64 && in->at < in->end; shift += 7) {
		uint8_t byte = *in->at++;
		*value |= (uint64_t)(byte & 0x7f) << shift;
		if (byte < 0x80)
			return 1;
	}
	return 0;
}

/* 1: a field (`value` is the number, or the length of `data`), 0: the end, -1: malformed. */
static int get_field(struct reader *in, struct field *out)
{
	uint64_t key;
	if (in->at == in->end)
		return 0;
	if (!get_varint(in, &key))
		return -1;
	out->number = key >> 3;
	out->type = (int)(key & 7);
	if (out->type == VARINT)
		return get_varint(in, &out->value) ? 1 : -1;
	if (out->type == BYTES && !get_varint(in, &out->value))
		return -1;
	if (out->type != BYTES)
		out->value = out->type == FIXED64 ? 8 : out->type == FIXED32 ? 4 : UINT64_MAX;
	if (out->value > (uint64_t)(in->end - in->at))
		return -1;
	out->data = in->at;
	in->at += out->value;
	return 1;
}

/* ---- heartbeats and answers ---------------------------------------------------------------------------------------------------- */

struct heartbeat {
	const char *vm;
	uint32_t key_id;
	uint8_t key[KEY_BYTES], boot_id[ID_BYTES], nonce[ID_BYTES];
	int has_nonce;
	uint64_t sequence, time_ms, interval_ms;
};

static size_t encode_heartbeat(const struct heartbeat *hb, uint8_t out[MAX_ENVELOPE])
{
	uint8_t body[MAX_ENVELOPE], tag[TAG_BYTES];
	size_t n = put_bytes(body, 1, hb->vm, strlen(hb->vm));
	n += put_bytes(body + n, 2, hb->boot_id, ID_BYTES);
	n += put_number(body + n, 3, hb->sequence);
	n += put_number(body + n, 4, hb->time_ms);
	n += put_number(body + n, 5, hb->interval_ms);
	if (hb->has_nonce)
		n += put_bytes(body + n, 6, hb->nonce, ID_BYTES);
	tag_of(hb->key, "careof-hb-v1", body, n, tag);
	size_t m = put_bytes(out, 1, body, n);
	m += put_number(out + m, 2, 1);
	m += put_number(out + m, 3, hb->key_id);
	return m + put_bytes(out + m, 4, tag, TAG_BYTES);
}

enum verdict { MALFORMED, BAD_TAG, NOT_OURS, ACCEPTED, STALE_NONCE, OTHER };
static const char *const VERDICTS[] = { "malformed", "bad-tag", "not-ours", "accepted", "stale-nonce", "other" };

static int is_text(const struct field *field, const char *text)
{
	return field->value == strlen(text) && memcmp(field->data, text, field->value) == 0;
}

/* Takes the nonce of an answer that is genuine and answers a heartbeat of this boot. */
static enum verdict take_answer(struct heartbeat *hb, const uint8_t *datagram, size_t length)
{
	struct reader in = { datagram, datagram + length };
	struct field field, body = { 0 }, tag = { 0 }, reason = { 0 }, nonce = { 0 }, boot_id = { 0 };
	uint64_t algorithm = 0, sequence = 0;
	uint8_t expected[TAG_BYTES], difference = 0;
	int more;

	if (length > MAX_ENVELOPE)
		return MALFORMED;
	while ((more = get_field(&in, &field)) > 0) {
		if (field.number == 1 && field.type == BYTES)
			body = field;
		else if (field.number == 2 && field.type == VARINT)
			algorithm = field.value;
		else if (field.number == 4 && field.type == BYTES)
			tag = field;
	}
	if (more < 0 || algorithm != 1 || body.value == 0 || tag.value != TAG_BYTES)
		return MALFORMED;
	tag_of(hb->key, "careof-ha-v1", body.data, body.value, expected);
	for (int i = 0; i < TAG_BYTES; i++)
		difference |= (uint8_t)(expected[i] ^ tag.data[i]);
	if (difference != 0)
		return BAD_TAG;

	in = (struct reader){ body.data, body.data + body.value };
	while ((more = get_field(&in, &field)) > 0) {
		if (field.number == 1 && field.type == BYTES)
			reason = field;
		else if (field.number == 2 && field.type == BYTES)
			nonce = field;
		else if (field.number == 3 && field.type == VARINT)
			sequence = field.value;
		else if (field.number == 4 && field.type == BYTES)
			boot_id = field;
	}
	if (more < 0 || reason.value == 0 || sequence == 0 || boot_id.value != ID_BYTES || (nonce.value != 0 && nonce.value != ID_BYTES))
		return MALFORMED;
	if (memcmp(boot_id.data, hb->boot_id, ID_BYTES) != 0 || sequence > hb->sequence)
		return NOT_OURS;
	if (nonce.value == ID_BYTES) {
		memcpy(hb->nonce, nonce.data, ID_BYTES);
		hb->has_nonce = 1;
	}
	return is_text(&reason, "accepted") ? ACCEPTED : is_text(&reason, "stale-nonce") ? STALE_NONCE : OTHER;
}

/* ---- command line -------------------------------------------------------------------------------------------------------------- */

static void usage(const char *problem)
{
	if (problem != NULL)
		fprintf(stderr, "heartbeat: %s\n", problem);
	fprintf(stderr,
		"usage: heartbeat --vm ID (--key-hex HEX | --key-file FILE) --to ADDRESS:PORT\n"
		"                 [--key-id N] [--interval MS] [--once] [--verbose]\n"
		"       heartbeat --vm ID --key-hex HEX --print-vector BOOT-ID SEQUENCE TIME-MS [--key-id N] [--interval MS]\n"
		"                 [--nonce HEX] [--answer HEX]\n"
		"\n"
		"  --vm ID         the machine's name at the home agent\n"
		"  --key-hex HEX   its key, 64 hexadecimal digits (others see a command line: rather use)\n"
		"  --key-file FILE a file that holds them\n"
		"  --key-id N      which of its keys that is (default 1)\n"
		"  --to            IPv4 address and UDP port of the gateway or the home agent, or [IPv6]:PORT\n"
		"  --interval MS   10 to 3600000 (default 500); each one varies by 10 per cent\n"
		"  --once          send one, wait up to a second for its answer, exit 0 if it was accepted, else 1\n"
		"  --verbose       say on standard error when what the home agent answers changes\n"
		"  --print-vector  send nothing; print the datagram in hexadecimal, and what comes of --answer\n");
	exit(problem == NULL ? 0 : 2);
}

static int hex_bytes(const char *text, uint8_t *out, size_t length)
{
	if (strspn(text, "0123456789abcdefABCDEF") != 2 * length || strlen(text) != 2 * length)
		return 0;
	for (size_t i = 0; i < length; i++) {
		char pair[3] = { text[2 * i], text[2 * i + 1], 0 };
		out[i] = (uint8_t)strtoul(pair, NULL, 16);
	}
	return 1;
}

static uint64_t number(const char *text, uint64_t min, uint64_t max, const char *problem)
{
	char *end;
	errno = 0;
	unsigned long long value = strtoull(text, &end, 10);
	if (*text < '0' || *text > '9' || *end != 0 || errno != 0 || value < min || value > max)
		usage(problem);
	return value;
}

static void read_key(const char *file, uint8_t key[KEY_BYTES])
{
	char text[256];
	FILE *in = fopen(file, "r");
	if (in == NULL) {
		fprintf(stderr, "heartbeat: cannot read %s: %s\n", file, strerror(errno));
		exit(1);
	}
	size_t n = fread(text, 1, sizeof text - 1, in);
	fclose(in);
	text[n] = 0;
	char *start = text + strspn(text, " \t\r\n");
	start[strcspn(start, " \t\r\n")] = 0;
	if (!hex_bytes(start, key, KEY_BYTES)) {
		fprintf(stderr, "heartbeat: %s does not hold 64 hexadecimal digits\n", file);
		exit(1);
	}
}

static int is_vm_name(const char *vm)
{
	size_t n = strlen(vm);
	return n >= 1 && n <= MAX_NAME && strspn(vm, "abcdefghijklmnopqrstuvwxyz0123456789._-") == n && strchr("._-", vm[0]) == NULL;
}

static socklen_t parse_destination(const char *text, struct sockaddr_storage *to)
{
	char host[64];
	const char *colon = strrchr(text, ':');
	if (colon == NULL || colon == text || (size_t)(colon - text) >= sizeof host)
		usage("--to wants ADDRESS:PORT");
	uint16_t port = htons((uint16_t)number(colon + 1, 1, 65535, "--to: a port is 1 to 65535"));
	struct sockaddr_in *v4 = (struct sockaddr_in *)to;
	struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)to;
	memset(to, 0, sizeof *to);
	if (text[0] == '[' && colon[-1] == ']') {
		memcpy(host, text + 1, (size_t)(colon - text) - 2);
		host[colon - text - 2] = 0;
		v6->sin6_family = AF_INET6;
		v6->sin6_port = port;
		if (inet_pton(AF_INET6, host, &v6->sin6_addr) == 1)
			return sizeof *v6;
	} else {
		memcpy(host, text, (size_t)(colon - text));
		host[colon - text] = 0;
		v4->sin_family = AF_INET;
		v4->sin_port = port;
		if (inet_pton(AF_INET, host, &v4->sin_addr) == 1)
			return sizeof *v4;
	}
	usage("--to wants ADDRESS:PORT, an address in digits");
	return 0;
}

/* ---- sending ------------------------------------------------------------------------------------------------------------------- */

static volatile sig_atomic_t stopped;
static int verbose;

static void stop(int signal_number)
{
	(void)signal_number;
	stopped = 1;
}

static uint64_t clock_ms(clockid_t id)
{
	struct timespec now;
	clock_gettime(id, &now);
	return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static void random_bytes(void *out, size_t length)
{
	for (size_t have = 0; have < length;) {
		ssize_t got = getrandom((uint8_t *)out + have, length - have, 0);
		if (got > 0)
			have += (size_t)got;
		else if (errno != EINTR) {
			fprintf(stderr, "heartbeat: no random bytes: %s\n", strerror(errno));
			exit(1);
		}
	}
}

/* The interval, 10 per cent more or less, so that machines that started together do not stay in step. */
static uint64_t jittered(uint64_t interval)
{
	uint32_t random;
	random_bytes(&random, sizeof random);
	return interval - interval / 10 + random % (2 * (interval / 10) + 1);
}

static void report(const char *what)
{
	static char last[128];
	if (!verbose || strcmp(last, what) == 0)
		return;
	snprintf(last, sizeof last, "%s", what);
	fprintf(stderr, "heartbeat: %s\n", what);
}

/* A network that is not there, or that says so, is no reason to stop: the next heartbeat may get through. */
static void send_heartbeat(int fd, struct heartbeat *hb, const struct sockaddr_storage *to, socklen_t to_length)
{
	uint8_t datagram[MAX_ENVELOPE];
	hb->sequence++;
	hb->time_ms = clock_ms(CLOCK_REALTIME);
	size_t n = encode_heartbeat(hb, datagram);
	if (sendto(fd, datagram, n, 0, (const struct sockaddr *)to, to_length) < 0)
		report(strerror(errno));
}

/* One interval of listening. 1: `stale-nonce`, send again at once; 2: accepted (returned early only if `once`); 0: time is up. */
static int listen_until(int fd, struct heartbeat *hb, uint64_t due, int once)
{
	uint8_t datagram[MAX_ENVELOPE + 1];
	uint64_t now;
	while (!stopped && (now = clock_ms(CLOCK_MONOTONIC)) < due) {
		struct pollfd wait = { .fd = fd, .events = POLLIN };
		if (poll(&wait, 1, (int)(due - now)) <= 0)
			continue;
		ssize_t n = recv(fd, datagram, sizeof datagram, MSG_DONTWAIT);
		if (n < 0)
			continue;
		enum verdict verdict = take_answer(hb, datagram, (size_t)n);
		report(VERDICTS[verdict]);
		if (verdict == STALE_NONCE)
			return 1;
		if (verdict == ACCEPTED && once)
			return 2;
	}
	return 0;
}

static int run(struct heartbeat *hb, const struct sockaddr_storage *to, socklen_t to_length, int once)
{
	int fd = socket(to->ss_family, SOCK_DGRAM | SOCK_CLOEXEC, 0), resends = 0;
	if (fd < 0) {
		perror("heartbeat: socket");
		return 1;
	}
	struct sigaction on_stop = { .sa_handler = stop };
	sigaction(SIGTERM, &on_stop, NULL);
	sigaction(SIGINT, &on_stop, NULL);
	random_bytes(hb->boot_id, ID_BYTES);
	while (!stopped) {
		send_heartbeat(fd, hb, to, to_length);
		uint64_t due = clock_ms(CLOCK_MONOTONIC) + (once ? ONCE_WAIT_MS : jittered(hb->interval_ms));
		int heard = listen_until(fd, hb, due, once);
		/* Bounded, lest two that disagree about a nonce shout at one another. */
		if (heard == 1 && resends++ < MAX_RESENDS)
			continue;
		if (heard == 1)
			while (listen_until(fd, hb, due, 0) == 1)
				;
		resends = 0;
		if (once)
			return heard == 2 ? 0 : 1;
	}
	close(fd);
	return 0;
}

static void print_vector(struct heartbeat *hb, const char *answer)
{
	uint8_t datagram[MAX_ENVELOPE + 1];
	size_t n = encode_heartbeat(hb, datagram);
	for (size_t i = 0; i < n; i++)
		printf("%02x", datagram[i]);
	printf("\n");
	if (answer == NULL)
		return;
	n = strlen(answer) / 2;
	if (n > sizeof datagram || !hex_bytes(answer, datagram, n))
		usage("--answer wants hexadecimal digits, two for a byte, at most 513 bytes");
	enum verdict verdict = take_answer(hb, datagram, n);
	printf("%s\n", VERDICTS[verdict]);
	for (size_t i = 0; hb->has_nonce && i < ID_BYTES; i++)
		printf("%02x", hb->nonce[i]);
	printf("\n");
}

int main(int argc, char **argv)
{
	struct heartbeat hb = { .key_id = 1, .interval_ms = DEFAULT_INTERVAL_MS };
	const char *key_file = NULL, *to = NULL, *answer = NULL;
	int has_key = 0, once = 0, vector = 0;
	struct sockaddr_storage destination;

	for (int i = 1; i < argc; i++) {
		const char *option = argv[i];
		const char *value = i + 1 < argc ? argv[i + 1] : NULL;
		if (strcmp(option, "--help") == 0)
			usage(NULL);
		if (strcmp(option, "--once") == 0) {
			once = 1;
			continue;
		}
		if (strcmp(option, "--verbose") == 0) {
			verbose = 1;
			continue;
		}
		if (strncmp(option, "--", 2) != 0 || value == NULL)
			usage(strncmp(option, "--", 2) != 0 ? "only options are understood" : "an option is unknown or lacks its value");
		i++;
		if (strcmp(option, "--vm") == 0)
			hb.vm = value;
		else if (strcmp(option, "--key-id") == 0)
			hb.key_id = (uint32_t)number(value, 0, UINT32_MAX, "--key-id wants a number from 0 to 4294967295");
		else if (strcmp(option, "--key-hex") == 0) {
			if (!hex_bytes(value, hb.key, KEY_BYTES))
				usage("--key-hex wants 64 hexadecimal digits");
			has_key = 1;
		} else if (strcmp(option, "--key-file") == 0)
			key_file = value;
		else if (strcmp(option, "--to") == 0)
			to = value;
		else if (strcmp(option, "--interval") == 0)
			hb.interval_ms = number(value, MIN_INTERVAL_MS, MAX_INTERVAL_MS, "--interval wants 10 to 3600000");
		else if (strcmp(option, "--print-vector") == 0) {
			if (i + 2 >= argc || !hex_bytes(value, hb.boot_id, ID_BYTES))
				usage("--print-vector wants a boot id of 32 hexadecimal digits, a sequence and a time");
			hb.sequence = number(argv[++i], 1, (1ULL << 53) - 1, "--print-vector: not a sequence");
			hb.time_ms = number(argv[++i], 0, (1ULL << 53) - 1, "--print-vector: not a time");
			vector = 1;
		} else if (strcmp(option, "--nonce") == 0) {
			if (!hex_bytes(value, hb.nonce, ID_BYTES))
				usage("--nonce wants 32 hexadecimal digits");
			hb.has_nonce = 1;
		} else if (strcmp(option, "--answer") == 0)
			answer = value;
		else
			usage("an option is unknown");
	}
	if (hb.vm == NULL || !is_vm_name(hb.vm))
		usage("--vm wants a name: 1 to 63 of a-z 0-9 . _ -, starting with a letter or digit");
	if (has_key == (key_file != NULL))
		usage("one of --key-hex and --key-file is needed");
	if (key_file != NULL)
		read_key(key_file, hb.key);
	if (vector) {
		print_vector(&hb, answer);
		return 0;
	}
	if (to == NULL)
		usage("--to is needed");
	if (hb.has_nonce || answer != NULL)
		usage("--nonce and --answer go with --print-vector");
	socklen_t length = parse_destination(to, &destination);
	return run(&hb, &destination, length, once);
}
