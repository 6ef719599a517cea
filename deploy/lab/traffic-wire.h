/*
 * What both ends of the traffic program share: the packets, the pacing, and the record of received numbers.
 */
#include <arpa/inet.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <netinet/udp.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum {
    DEFAULT_PORT = 7001,         /* UDP packets, and the TCP request/response sessions */
    DEFAULT_BULK_PORT = 7002,    /* TCP bulk */
    MAX_NUMBER = 1 << 24,        /* packets of one run in one direction: 28 minutes at 10,000/s */
    MAX_PPS = 20000,
    MAX_BULK_MBIT = 1000,
    LINE_BYTES = 160,            /* a request or an answer with its line feed */
    BULK_CHUNK = 64 * 1024,
    CATCH_UP_MS = 50,            /* a sender that was held up longer goes on from now */
    RECEIVE_BUFFER = 8 << 20,
    UDP_MOST_SEGMENTS = 64,      /* UDP_MAX_SEGMENTS of the kernel before 6.9 */
};

#define NS_PER_S 1000000000LL
#define NS_PER_MS 1000000LL
#define DOWN_MAGIC 0x636f6466u /* "codf" */
#define UP_MAGIC 0x636f7570u   /* "coup" */

/* From the correspondent to the guest. All integers in network order. */
struct down_packet {
    uint32_t magic;
    uint32_t session;
    uint64_t number; /* from 1 */
    uint64_t sent_ns;
};

/* From the guest to the correspondent: its own number, and what the guest has received until now. */
struct up_packet {
    uint32_t magic;
    uint32_t session;
    uint64_t number; /* from 1 */
    uint64_t guest_ns;
    uint64_t instance; /* random, drawn when the guest's end started */
    uint64_t highest;  /* highest number received, 0 if none */
    uint64_t unique;
    uint64_t duplicates;
    uint64_t reordered;
    uint64_t bulk_bytes; /* received on bulk sessions of this run */
};

static volatile sig_atomic_t stopping;

static void on_stop_signal(int number)
{
    (void)number;
    stopping = 1;
}

static void handle_stop_signals(void)
{
    struct sigaction action = {.sa_handler = on_stop_signal};
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    signal(SIGPIPE, SIG_IGN);
}

__attribute__((noreturn, format(printf, 1, 2))) static void die(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fputs("traffic: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    exit(1);
}

static int64_t clock_ns(clockid_t clock)
{
    struct timespec at;
    clock_gettime(clock, &at);
    return at.tv_sec * NS_PER_S + at.tv_nsec;
}

static int64_t now_ns(void)
{
    return clock_ns(CLOCK_MONOTONIC);
}

/* Says how many units are due by absolute time, so that a late wake-up is caught up with; what is older than CATCH_UP_MS is not. */
struct pacer {
    double per_second;
    int64_t start;
    double done;
};

static void pacer_start(struct pacer *pacer, double per_second)
{
    *pacer = (struct pacer){.per_second = per_second, .start = now_ns()};
}

static uint64_t pacer_due(struct pacer *pacer, int64_t now)
{
    double due = (double)(now - pacer->start) * pacer->per_second / 1e9 - pacer->done;
    double most = pacer->per_second * CATCH_UP_MS / 1e3;

    if (most < 1)
        most = 1;
    if (due > most) {
        pacer->done += due - most;
        due = most;
    }
    return due < 1 ? 0 : (uint64_t)due;
}

/* How often each number was received, and whether it came after a higher one. */
struct record {
    uint8_t *numbers; /* MAX_NUMBER + 1 bytes, touched only as far as numbers come */
    uint64_t highest, unique, duplicates, reordered;
};

enum { RECORD_TIMES = 0x3f, RECORD_LATE = 0x40 };

static void record_open(struct record *record)
{
    free(record->numbers);
    *record = (struct record){.numbers = calloc(MAX_NUMBER + 1, 1)};
    if (record->numbers == NULL)
        die("out of memory");
}

static void record_add(struct record *record, uint64_t number)
{
    uint8_t *entry;

    if (number == 0 || number > MAX_NUMBER)
        return;
    entry = &record->numbers[number];
    if (*entry & RECORD_TIMES) {
        record->duplicates++;
        if ((*entry & RECORD_TIMES) < RECORD_TIMES)
            ++*entry;
        return;
    }
    *entry = 1;
    record->unique++;
    if (number < record->highest) {
        *entry |= RECORD_LATE;
        record->reordered++;
    } else {
        record->highest = number;
    }
}

struct tally {
    uint64_t unique, duplicates, reordered;
};

static struct tally record_window(const struct record *record, uint64_t from, uint64_t to)
{
    struct tally tally = {0};

    for (uint64_t number = from < 1 ? 1 : from; number <= to && number <= MAX_NUMBER; number++) {
        unsigned times = record->numbers[number] & RECORD_TIMES;
        tally.unique += times > 0;
        tally.duplicates += times > 1 ? times - 1 : 0;
        tally.reordered += (record->numbers[number] & RECORD_LATE) != 0;
    }
    return tally;
}

static void set_option(int fd, int level, int option, int value)
{
    if (setsockopt(fd, level, option, &value, sizeof value) < 0)
        die("setsockopt: %s", strerror(errno));
}

static int udp_socket(void)
{
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    int bytes = RECEIVE_BUFFER;

    if (fd < 0)
        die("socket: %s", strerror(errno));
    /* The forced size needs CAP_NET_ADMIN; without it the system's limit holds. */
    if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &bytes, sizeof bytes) < 0)
        set_option(fd, SOL_SOCKET, SO_RCVBUF, bytes);
    return fd;
}

static int tick_timer(void)
{
    int fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);

    if (fd < 0)
        die("timerfd: %s", strerror(errno));
    return fd;
}

/* 0 stops it. */
static void set_tick(int fd, int64_t period_ns)
{
    struct timespec period = {.tv_sec = period_ns / NS_PER_S, .tv_nsec = period_ns % NS_PER_S};
    struct itimerspec timer = {.it_interval = period, .it_value = period};

    timerfd_settime(fd, 0, &timer, NULL);
}

static void clear_tick(int fd)
{
    uint64_t expirations;

    while (read(fd, &expirations, sizeof expirations) > 0)
        continue;
}

/* Collects lines of at most LINE_BYTES from a stream. */
struct lines {
    char bytes[LINE_BYTES];
    size_t length;
};

/* Reads what is there. False: the other end closed, failed, or sent a line that is too long (errno says which; 0 is "closed"). */
static bool lines_fill(struct lines *lines, int fd)
{
    ssize_t got;

    if (lines->length == sizeof lines->bytes) {
        errno = EMSGSIZE;
        return false;
    }
    got = read(fd, lines->bytes + lines->length, sizeof lines->bytes - lines->length);
    if (got > 0) {
        lines->length += (size_t)got;
        return true;
    }
    if (got == 0)
        errno = 0;
    return got < 0 && (errno == EAGAIN || errno == EINTR);
}

/* The next whole line without its line feed, or false. */
static bool lines_next(struct lines *lines, char line[LINE_BYTES])
{
    char *end = memchr(lines->bytes, '\n', lines->length);
    size_t length;

    if (end == NULL)
        return false;
    length = (size_t)(end - lines->bytes);
    memcpy(line, lines->bytes, length);
    line[length] = '\0';
    lines->length -= length + 1;
    memmove(lines->bytes, end + 1, lines->length);
    return true;
}
