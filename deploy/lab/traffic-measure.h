/*
 * What the correspondent's end records and says of it. Every stamp is of one clock (CLOCK_MONOTONIC, in the output as
 * milliseconds). It writes JSON lines and takes a line a command on standard input:
 *
 *   mark NAME       remembers this moment and the numbers reached               -> {"type":"mark",…}
 *   window A B      everything between two marks                                -> {"type":"window",…}
 *   idle            one request on the session that was idle since the start    -> {"type":"idle",…}
 *   quit            (or end of input)                                           -> {"type":"end",…}
 *
 * Every 100 ms a {"type":"sample",…}; when a session breaks {"type":"broken",…}.
 */
enum { SAMPLE_MS = 100, BUCKET_MS = 10, BUCKETS = SAMPLE_MS / BUCKET_MS, MAX_MARKS = 1024, MAX_PENDING = 16, MAX_EVENTS = 1 << 21 };

struct options {
    struct in_addr to;
    uint16_t port, bulk_port;
    unsigned pps_down, pps_up, bulk_mbit, rr_ms, wait_s;
};

/* Of one up packet, or of one read of bulk (number and highest 0). */
struct event {
    int64_t at;
    uint32_t number, highest;
    uint64_t bytes; /* cumulative: up packet: bulk received by the guest; bulk: received here */
};

struct events {
    struct event *ring;
    uint64_t count;
};

struct mark {
    char name[32];
    int64_t at;
    uint64_t down_number, up_number, bulk_up, bulk_down;
};

struct pending {
    enum { PING, WINDOW, IDLE } kind;
    int64_t asked;
    int from, to;
};

struct link {
    const char *name;
    int fd;
    bool alive;
    struct lines lines;
    struct pending pending[MAX_PENDING];
    unsigned pendings;
    uint64_t counter; /* newest answer's */
};

enum { REQUEST, IDLE_SESSION, BULK_UP, BULK_DOWN, LINKS };

struct run {
    struct options options;
    struct link links[LINKS];
    int udp, tick;
    uint32_t session;
    uint64_t down_number, instance, ping_number, refused; /* by the guest's socket, as it last said */
    struct pacer down, bulk_down;
    struct record up;
    struct up_packet guest; /* newest, as it came */
    struct events packets, bulk;
    uint64_t bulk_up, bulk_down_seen;
    struct mark marks[MAX_MARKS];
    int mark_count;
    int64_t next_sample, next_ping, last_rtt, most_rtt, most_late;
    uint64_t bucket_up[BUCKETS], bucket_down[BUCKETS];
    struct sockaddr_in to;
};

static double ms(int64_t ns)
{
    return (double)ns / 1e6;
}

static void add_event(struct events *events, struct event event)
{
    events->ring[events->count++ % MAX_EVENTS] = event;
}


/* The longest time within a window in which nothing advanced, and when it began; in ns. */
struct silence {
    int64_t longest, where;
};

/* `field`: 'n' any packet, 'h' one that raises the guest's highest number, 'b' one that raises the bytes. */
static struct silence longest_silence(const struct events *events, int64_t from, int64_t to, int field)
{
    uint64_t first = events->count > MAX_EVENTS ? events->count - MAX_EVENTS : 0;
    struct silence silence = {.longest = -1, .where = from};
    uint64_t value = 0, newest = 0;
    int64_t since = from;

    for (uint64_t i = first; i <= events->count; i++) {
        const struct event *event = i < events->count ? &events->ring[i % MAX_EVENTS] : NULL;
        int64_t at = event == NULL || event->at > to ? to : event->at;

        if (event != NULL) {
            newest = field == 'n' ? i + 1 : field == 'h' ? event->highest : event->bytes;
            if (newest <= value)
                continue;
            value = newest;
            if (at < from)
                continue;
        }
        if (at - since > silence.longest)
            silence = (struct silence){.longest = at - since, .where = since};
        since = at;
        if (at >= to)
            break;
    }
    return silence;
}

static void print_silence(const char *name, struct silence silence, int64_t period, bool measured)
{
    int64_t gap = silence.longest - period;

    if (!measured || silence.longest < 0)
        printf(",\"%sMs\":null,\"%sAt\":null", name, name);
    else
        printf(",\"%sMs\":%.3f,\"%sAt\":%.3f", name, ms(gap > 0 ? gap : 0), name, ms(silence.where));
}

static void print_window(struct run *run, const struct mark *from, const struct mark *to, struct tally down, uint64_t refused)
{
    const struct options *options = &run->options;
    struct tally up = record_window(&run->up, from->up_number + 1, to->up_number);
    uint64_t oldest = run->packets.count > MAX_EVENTS ? (uint64_t)run->packets.ring[run->packets.count % MAX_EVENTS].at : 0;
    bool whole = oldest <= (uint64_t)from->at; /* the ring still holds the window's beginning */

    printf("{\"type\":\"window\",\"from\":\"%s\",\"to\":\"%s\",\"t0\":%.3f,\"t1\":%.3f", from->name, to->name, ms(from->at), ms(to->at));
    printf(",\"sentDown\":%llu,\"receivedDown\":%llu,\"duplicatedDown\":%llu,\"reorderedDown\":%llu",
           (unsigned long long)(to->down_number - from->down_number), (unsigned long long)down.unique,
           (unsigned long long)down.duplicates, (unsigned long long)down.reordered);
    printf(",\"sentUp\":%llu,\"receivedUp\":%llu,\"duplicatedUp\":%llu,\"reorderedUp\":%llu",
           (unsigned long long)(to->up_number - from->up_number), (unsigned long long)up.unique,
           (unsigned long long)up.duplicates, (unsigned long long)up.reordered);
    printf(",\"guestRefused\":%llu", (unsigned long long)refused);
    print_silence("serviceGapUp", longest_silence(&run->packets, from->at, to->at, 'n'),
                  options->pps_up ? NS_PER_S / options->pps_up : 0, whole && options->pps_up > 0);
    print_silence("serviceGapDown", longest_silence(&run->packets, from->at, to->at, 'h'),
                  options->pps_down ? NS_PER_S / options->pps_down : 0, whole && options->pps_up > 0 && options->pps_down > 0);
    print_silence("tcpStallUp", longest_silence(&run->bulk, from->at, to->at, 'b'), 0, options->bulk_mbit > 0);
    print_silence("tcpStallDown", longest_silence(&run->packets, from->at, to->at, 'b'), 0, whole && options->bulk_mbit > 0 && options->pps_up > 0);
    printf(",\"bulkUpBytes\":%llu,\"bulkDownBytes\":%llu,\"senderLateMs\":%.3f}\n",
           (unsigned long long)(to->bulk_up - from->bulk_up), (unsigned long long)(to->bulk_down - from->bulk_down), ms(run->most_late));
}


static void print_buckets(const char *name, uint64_t buckets[BUCKETS])
{
    printf(",\"%s\":[", name);
    for (int i = 0; i < BUCKETS; i++)
        printf("%s%llu", i ? "," : "", (unsigned long long)buckets[i]);
    printf("]");
    memset(buckets, 0, BUCKETS * sizeof *buckets);
}

/* The 100 ms that end at `t`, bulk in bytes per 10 ms; counts are cumulative. A late sample's excess stands in its own buckets. */
static void print_sample(struct run *run, int64_t now)
{
    const struct up_packet *guest = &run->guest;

    printf("{\"type\":\"sample\",\"t\":%.3f", ms(run->next_sample));
    print_buckets("bulkUp", run->bucket_up);
    print_buckets("bulkDown", run->bucket_down);
    printf(",\"bulkUpBytes\":%llu,\"bulkDownBytes\":%llu", (unsigned long long)run->bulk_up, (unsigned long long)run->bulk_down_seen);
    printf(",\"sentDown\":%llu,\"guestHighest\":%llu,\"guestUnique\":%llu,\"guestDuplicates\":%llu,\"guestReordered\":%llu",
           (unsigned long long)run->down_number, (unsigned long long)be64toh(guest->highest), (unsigned long long)be64toh(guest->unique),
           (unsigned long long)be64toh(guest->duplicates), (unsigned long long)be64toh(guest->reordered));
    printf(",\"highestUp\":%llu,\"uniqueUp\":%llu,\"duplicatesUp\":%llu,\"reorderedUp\":%llu", (unsigned long long)run->up.highest,
           (unsigned long long)run->up.unique, (unsigned long long)run->up.duplicates, (unsigned long long)run->up.reordered);
    printf(",\"counter\":%llu,\"rttMs\":%.3f,\"rttMaxMs\":%.3f}\n", (unsigned long long)run->links[REQUEST].counter, ms(run->last_rtt), ms(run->most_rtt));
    run->most_rtt = 0;
    while (run->next_sample <= now)
        run->next_sample += SAMPLE_MS * NS_PER_MS;
}

/* `survived`: every session that was opened is still open and was answered by the same guest. */
static void print_end(const struct run *run)
{
    bool survived = true;

    for (int i = 0; i < LINKS; i++)
        survived &= run->links[i].alive || (i >= BULK_UP && run->options.bulk_mbit == 0);
    printf("{\"type\":\"end\",\"survived\":%s,\"bulkUpBytes\":%llu,\"bulkDownBytes\":%llu,\"sentDown\":%llu,\"highestUp\":%llu,\"counter\":%llu}\n",
           survived ? "true" : "false", (unsigned long long)run->bulk_up, (unsigned long long)run->bulk_down_seen,
           (unsigned long long)run->down_number, (unsigned long long)run->up.highest, (unsigned long long)run->links[REQUEST].counter);
}
