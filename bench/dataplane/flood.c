/*
 * As much as goes through, counted where it arrives.
 *
 *   flood receive tcp|udp PORT STREAMS WARM_MS WINDOW_MS CPU
 *     says "ready"; from WARM_MS after the first byte (TCP: of the last of STREAMS connections) on counts for WINDOW_MS, prints one line of JSON, ends.
 *   flood send tcp ADDRESS PORT STREAMS CPU             until the receiver has gone
 *   flood send udp ADDRESS PORT ADDRESSES CPU           until it is killed; to ADDRESSES addresses in turn, from ADDRESS on; frames of 64 bytes
 *
 * Exit 1 with one line on standard error when nothing arrives. Linux; no dependencies: gcc -O2 -static flood.c -o flood
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MAX_STREAMS 64
#define CHUNK (128 * 1024)
#define BATCH 64
/* Ethernet 14, IPv4 20, UDP 8, this, frame check sequence 4: 64 bytes. */
#define PAYLOAD 18
/* Longest wait for the first byte. */
#define PATIENCE_MS 10000

static char buffer[CHUNK];

__attribute__((noreturn)) static void fail(const char *what)
{
    fprintf(stderr, "flood: %s: %s\n", what, errno ? strerror(errno) : "nothing arrived");
    exit(1);
}

static int checked(int result, const char *what)
{
    if (result < 0)
        fail(what);
    return result;
}

static uint64_t now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

/* Time that the processors together did not idle, in ns; the kernel counts in clock ticks. */
static uint64_t busy_ns(void)
{
    unsigned long long part[8] = {0};
    FILE *stat = fopen("/proc/stat", "r");

    if (!stat || fscanf(stat, "cpu %llu %llu %llu %llu %llu %llu %llu %llu", part, part + 1, part + 2, part + 3, part + 4, part + 5, part + 6, part + 7) != 8)
        fail("/proc/stat");
    fclose(stat);
    /* user, nice, system, irq, softirq; what the hypervisor took is nobody's here */
    return (part[0] + part[1] + part[2] + part[5] + part[6]) * (1000000000 / (uint64_t)sysconf(_SC_CLK_TCK));
}

static struct sockaddr_in address(in_addr_t to, unsigned port)
{
    struct sockaddr_in made = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr = {to}};

    return made;
}

struct window {
    uint64_t warm, length; /* ns */
    uint64_t from, busy;   /* 0: not begun */
    uint64_t bytes, packets;
};

/* What arrived just now; 1 when the window is over. */
static int count(struct window *w, uint64_t bytes, uint64_t packets)
{
    uint64_t now = now_ns();

    if (!w->from) {
        w->from = now + w->warm;
        return 0;
    }
    if (now < w->from)
        return 0;
    if (!w->busy) {
        w->from = now;
        w->busy = busy_ns();
        return 0;
    }
    w->bytes += bytes;
    w->packets += packets;
    return now - w->from >= w->length;
}

static void report(const struct window *w)
{
    uint64_t ns = now_ns() - w->from, busy = busy_ns() - w->busy;

    printf("{\"bytes\":%llu,\"packets\":%llu,\"ns\":%llu,\"busyNs\":%llu}\n", (unsigned long long)w->bytes, (unsigned long long)w->packets, (unsigned long long)ns,
           (unsigned long long)busy);
}

static void ready(void)
{
    puts("ready");
    fflush(stdout);
}

static void receive_tcp(unsigned port, unsigned streams, struct window *w)
{
    struct sockaddr_in here = address(htonl(INADDR_ANY), port);
    struct pollfd polled[MAX_STREAMS];
    int listener = checked(socket(AF_INET, SOCK_STREAM, 0), "socket"), on = 1;

    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    checked(bind(listener, (struct sockaddr *)&here, sizeof here), "bind");
    checked(listen(listener, MAX_STREAMS), "listen");
    ready();
    for (unsigned i = 0; i < streams; i++) {
        struct pollfd waiting = {.fd = listener, .events = POLLIN};

        errno = 0;
        if (poll(&waiting, 1, PATIENCE_MS) != 1)
            fail("accept");
        polled[i] = (struct pollfd){.fd = checked(accept(listener, NULL, NULL), "accept"), .events = POLLIN};
    }
    for (;;) {
        errno = 0;
        if (poll(polled, streams, PATIENCE_MS) < 1)
            fail("poll");
        for (unsigned i = 0; i < streams; i++) {
            ssize_t got;

            if (!polled[i].revents)
                continue;
            got = recv(polled[i].fd, buffer, sizeof buffer, MSG_DONTWAIT);
            if (got == 0 || (got < 0 && errno != EAGAIN))
                fail("the sender has gone");
            if (got > 0 && count(w, (uint64_t)got, 0))
                return;
        }
    }
}

static void receive_udp(unsigned port, struct window *w)
{
    static struct mmsghdr messages[BATCH];
    static char space[BATCH][64];
    struct iovec parts[BATCH];
    struct sockaddr_in here = address(htonl(INADDR_ANY), port);
    struct timeval patience = {.tv_sec = PATIENCE_MS / 1000};
    int fd = checked(socket(AF_INET, SOCK_DGRAM, 0), "socket"), room = 4 * 1024 * 1024;

    setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof room);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    checked(bind(fd, (struct sockaddr *)&here, sizeof here), "bind");
    for (int i = 0; i < BATCH; i++) {
        parts[i] = (struct iovec){.iov_base = space[i], .iov_len = sizeof space[i]};
        messages[i].msg_hdr = (struct msghdr){.msg_iov = &parts[i], .msg_iovlen = 1};
    }
    ready();
    for (;;) {
        int got = recvmmsg(fd, messages, BATCH, MSG_WAITFORONE, NULL);

        if (got < 0 && errno == EAGAIN)
            errno = 0;
        if (got <= 0)
            fail("recvmmsg");
        if (count(w, (uint64_t)got * PAYLOAD, (uint64_t)got))
            return;
    }
}

static void send_tcp(in_addr_t to, unsigned port, unsigned streams)
{
    struct sockaddr_in there = address(to, port);
    struct pollfd polled[MAX_STREAMS];

    for (unsigned i = 0; i < streams; i++) {
        polled[i] = (struct pollfd){.fd = checked(socket(AF_INET, SOCK_STREAM, 0), "socket"), .events = POLLOUT};
        checked(connect(polled[i].fd, (struct sockaddr *)&there, sizeof there), "connect");
    }
    for (;;) {
        checked(poll(polled, streams, -1), "poll");
        for (unsigned i = 0; i < streams; i++)
            if (polled[i].revents && send(polled[i].fd, buffer, sizeof buffer, MSG_DONTWAIT) < 0 && errno != EAGAIN)
                return;
    }
}

static void send_udp(in_addr_t to, unsigned port, unsigned addresses)
{
    struct mmsghdr messages[BATCH] = {0};
    struct sockaddr_in there[BATCH];
    struct iovec part = {.iov_base = buffer, .iov_len = PAYLOAD};
    int fd = checked(socket(AF_INET, SOCK_DGRAM, 0), "socket");
    uint32_t next = 0;

    for (int i = 0; i < BATCH; i++)
        messages[i].msg_hdr = (struct msghdr){.msg_name = &there[i], .msg_namelen = sizeof there[i], .msg_iov = &part, .msg_iovlen = 1};
    for (;;) {
        for (int i = 0; i < BATCH; i++)
            there[i] = address(htonl(ntohl(to) + next++ % addresses), port);
        /* A full queue and a receiver that has gone are no reason to stop: somebody kills this process. */
        if (sendmmsg(fd, messages, BATCH, 0) < 0 && errno != ENOBUFS && errno != ECONNREFUSED && errno != EAGAIN)
            fail("sendmmsg");
    }
}

static unsigned number(const char *text, unsigned least, unsigned most)
{
    char *end;
    unsigned long value = strtoul(text, &end, 10);

    if (*text < '0' || *text > '9' || *end || value < least || value > most) {
        fprintf(stderr, "flood: %s is not a number from %u to %u\n", text, least, most);
        exit(2);
    }
    return (unsigned)value;
}

static void stay_on(unsigned cpu)
{
    cpu_set_t set;

    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    checked(sched_setaffinity(0, sizeof set, &set), "sched_setaffinity");
}

int main(int words, char **word)
{
    int receiving = words == 8 && !strcmp(word[1], "receive"), sending = words == 7 && !strcmp(word[1], "send");
    int tcp = words > 2 && !strcmp(word[2], "tcp");
    struct in_addr to;

    if (!(receiving || sending) || (!tcp && strcmp(word[2], "udp")) || (sending && inet_pton(AF_INET, word[3], &to) != 1)) {
        fputs("usage: flood receive tcp|udp PORT STREAMS WARM_MS WINDOW_MS CPU\n       flood send tcp|udp ADDRESS PORT STREAMS|ADDRESSES CPU\n", stderr);
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    stay_on(number(word[words - 1], 0, CPU_SETSIZE - 1));
    if (receiving) {
        struct window w = {.warm = number(word[5], 0, 60000) * 1000000ull, .length = number(word[6], 1, 60000) * 1000000ull};
        unsigned port = number(word[3], 1, 65535), streams = number(word[4], 1, MAX_STREAMS);

        if (tcp)
            receive_tcp(port, streams, &w);
        else
            receive_udp(port, &w);
        report(&w);
    } else if (tcp) {
        send_tcp(to.s_addr, number(word[4], 1, 65535), number(word[5], 1, MAX_STREAMS));
    } else {
        send_udp(to.s_addr, number(word[4], 1, 65535), number(word[5], 1, 1u << 20));
    }
    return 0;
}
