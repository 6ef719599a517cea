/*
 * A cable with a length: two TAP devices, and what goes into one comes out of the other after a delay, in order. For kernels without netem.
 *
 *   wire A B [--delay-us N] [--back-us N]
 *
 * Makes the TAPs A and B (offloads included, so that TCP keeps its large segments), prints "ready" and carries until it is ended. Whoever starts it
 * may then move the TAPs into other network namespaces. --delay-us is the way A to B, --back-us the way B to A (the same unless given).
 * Commands on standard input, one a line, each answered by "ok" or "no": `delay THERE BACK` (microseconds), `cut` (both ways lose everything), `heal`.
 * The end of standard input ends it. Bounded: 4096 frames of at most 64 KiB wait in each direction, more are dropped and counted; on exit it prints
 * "carried N dropped N".
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#define FRAME_MAX (65536 + 64)
#define RING 4096
#define BATCH 64
#define NS_PER_US 1000ULL
#define NS_PER_S 1000000000ULL

struct frame {
	uint64_t due;
	size_t length;
	uint8_t *bytes;
};

/* One direction: read from `in`, written to `out` when due. */
struct way {
	int in, out;
	uint64_t delay;
	struct frame ring[RING];
	unsigned head, count;
	unsigned long carried, dropped;
};

static struct way there, back;
static volatile sig_atomic_t ended;
static int is_cut;

static void die(const char *what)
{
	fprintf(stderr, "wire: %s: %s\n", what, strerror(errno));
	exit(1);
}

static uint64_t now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

static int open_tap(const char *name)
{
	struct ifreq request = { .ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR };
	int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);

	if (fd < 0)
		die("/dev/net/tun");
	if (strlen(name) >= IFNAMSIZ) {
		fprintf(stderr, "wire: %s: longer than an interface's name\n", name);
		exit(2);
	}
	strcpy(request.ifr_name, name);
	if (ioctl(fd, TUNSETIFF, &request))
		die(name);
	if (ioctl(fd, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6))
		die("TUNSETOFFLOAD");
	return fd;
}

/* Takes in what has come, at most a batch, so that both ways get their turn. */
static void take(struct way *way)
{
	static uint8_t buffer[FRAME_MAX];

	for (int i = 0; i < BATCH; i++) {
		ssize_t length = read(way->in, buffer, sizeof buffer);
		struct frame *frame;

		if (length < 0) {
			if (errno == EBADFD) /* its namespace is gone, and the TAP with it */
				ended = 1;
			else if (errno != EAGAIN && errno != EINTR && errno != EIO) /* EIO: the interface is down */
				die("read");
			return;
		}
		if (is_cut || way->count == RING) {
			way->dropped++;
			continue;
		}
		frame = &way->ring[(way->head + way->count) % RING];
		frame->bytes = malloc((size_t)length);
		if (!frame->bytes)
			die("malloc");
		memcpy(frame->bytes, buffer, (size_t)length);
		frame->length = (size_t)length;
		frame->due = now() + way->delay;
		way->count++;
	}
}

static void give(struct way *way, uint64_t at)
{
	while (way->count && way->ring[way->head].due <= at) {
		struct frame *frame = &way->ring[way->head];

		if (is_cut || write(way->out, frame->bytes, frame->length) < 0)
			way->dropped++;
		else
			way->carried++;
		free(frame->bytes);
		way->head = (way->head + 1) % RING;
		way->count--;
	}
}

/* False at the end of input. */
static int command(void)
{
	static char text[256];
	static size_t have;
	ssize_t got = read(0, text + have, sizeof text - 1 - have);
	char *end;

	if (got <= 0)
		return got < 0 && (errno == EAGAIN || errno == EINTR);
	have += (size_t)got;
	text[have] = 0;
	while ((end = strchr(text, '\n'))) {
		unsigned long forth, return_;
		int known = 1;

		*end = 0;
		if (sscanf(text, "delay %lu %lu", &forth, &return_) == 2) {
			there.delay = forth * NS_PER_US;
			back.delay = return_ * NS_PER_US;
		} else if (!strcmp(text, "cut"))
			is_cut = 1;
		else if (!strcmp(text, "heal"))
			is_cut = 0;
		else
			known = 0;
		puts(known ? "ok" : "no");
		fflush(stdout);
		have -= (size_t)(end + 1 - text);
		memmove(text, end + 1, have + 1);
	}
	return have < sizeof text - 1;
}

static uint64_t next_due(void)
{
	uint64_t due = UINT64_MAX;

	if (there.count)
		due = there.ring[there.head].due;
	if (back.count && back.ring[back.head].due < due)
		due = back.ring[back.head].due;
	return due;
}

static void end(int signal)
{
	(void)signal;
	ended = 1;
}

static uint64_t microseconds(const char *text)
{
	char *rest;
	unsigned long value = strtoul(text, &rest, 10);

	if (!*text || *rest || value > 10000000) {
		fprintf(stderr, "wire: %s: not 0 to 10000000 microseconds\n", text);
		exit(2);
	}
	return value * NS_PER_US;
}

int main(int argc, char **argv)
{
	int back_given = 0;

	if (argc < 3 || argc % 2 == 0) {
		fprintf(stderr, "usage: wire A B [--delay-us N] [--back-us N]\n");
		return 2;
	}
	for (int i = 3; i < argc; i += 2) {
		if (!strcmp(argv[i], "--delay-us"))
			there.delay = microseconds(argv[i + 1]);
		else if (!strcmp(argv[i], "--back-us")) {
			back.delay = microseconds(argv[i + 1]);
			back_given = 1;
		} else {
			fprintf(stderr, "wire: unknown option %s\n", argv[i]);
			return 2;
		}
	}
	if (!back_given)
		back.delay = there.delay;
	signal(SIGTERM, end);
	signal(SIGINT, end);
	there.in = back.out = open_tap(argv[1]);
	there.out = back.in = open_tap(argv[2]);
	puts("ready");
	fflush(stdout);
	while (!ended) {
		struct pollfd polled[] = { { .fd = there.in, .events = POLLIN }, { .fd = back.in, .events = POLLIN }, { .fd = 0, .events = POLLIN } };
		uint64_t due = next_due(), at = now();
		struct timespec wait;

		if (due > at) {
			uint64_t left = due == UINT64_MAX ? NS_PER_S : due - at;
			wait.tv_sec = (time_t)(left / NS_PER_S);
			wait.tv_nsec = (long)(left % NS_PER_S);
		} else
			wait.tv_sec = wait.tv_nsec = 0;
		if (ppoll(polled, 3, &wait, 0) < 0 && errno != EINTR)
			die("ppoll");
		take(&there);
		take(&back);
		at = now();
		give(&there, at);
		give(&back, at);
		if (polled[2].revents && !command())
			break;
	}
	printf("carried %lu dropped %lu\n", there.carried + back.carried, there.dropped + back.dropped);
	return 0;
}
