/*
 * The guest's end. Request/response sessions, a line each way:
 *
 *   start SESSION PPS PORT   records start afresh; up packets at PPS go to the asker's address and PORT    -> started
 *   ping N                   -> pong N COUNTER INSTANCE    COUNTER grows by one with every ping of any session
 *   window FROM TO           -> window UNIQUE DUPLICATES REORDERED REFUSED    of the down numbers FROM to TO; and how many packets
 *                            found this end's receive buffer full since the session's start
 *
 * Bulk sessions begin with a line of the asker: "send MBIT" (this end sends), or "sink" (this end receives and counts).
 */
enum { MAX_SESSIONS = 16, SERVE_TICK_NS = 1000000 };

enum session_kind { FREE, REQUESTS, BULK_NEW, BULK_SEND, BULK_SINK };

struct session {
    enum session_kind kind;
    int fd;
    struct lines lines;
    struct pacer pacer;
    struct in_addr peer;
};

struct server {
    int udp, requests, bulk, tick;
    struct session sessions[MAX_SESSIONS];
    struct record down;
    uint64_t instance, counter, bulk_bytes;
    uint32_t session;
    uint64_t up_number;
    uint32_t refused, refused_before; /* packets that found this end's receive buffer full: since it started, and of these before this run */
    struct pacer up;
    struct sockaddr_in up_to;
};

static char bulk_bytes[BULK_CHUNK];

static int listen_tcp(const char *address, uint16_t port)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(port)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    if (fd < 0)
        die("socket: %s", strerror(errno));
    if (inet_pton(AF_INET, address, &at.sin_addr) != 1)
        die("%s is not an IPv4 address", address);
    set_option(fd, SOL_SOCKET, SO_REUSEADDR, 1);
    if (bind(fd, (struct sockaddr *)&at, sizeof at) < 0 || listen(fd, MAX_SESSIONS) < 0)
        die("cannot listen on %s port %u: %s", address, port, strerror(errno));
    return fd;
}

static void adjust_tick(struct server *server)
{
    bool wanted = server->up.per_second > 0;

    for (int i = 0; i < MAX_SESSIONS; i++)
        wanted |= server->sessions[i].kind == BULK_SEND;
    set_tick(server->tick, wanted ? SERVE_TICK_NS : 0);
}

static void accept_session(struct server *server, int listener, enum session_kind kind)
{
    struct sockaddr_in peer;
    socklen_t length = sizeof peer;
    int fd = accept4(listener, (struct sockaddr *)&peer, &length, SOCK_NONBLOCK | SOCK_CLOEXEC);

    if (fd < 0)
        return;
    for (int i = 0; i < MAX_SESSIONS; i++) {
        if (server->sessions[i].kind != FREE)
            continue;
        server->sessions[i] = (struct session){.kind = kind, .fd = fd, .peer = peer.sin_addr};
        set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
        return;
    }
    close(fd); /* full */
}

static void end_session(struct server *server, struct session *session)
{
    close(session->fd);
    session->kind = FREE;
    adjust_tick(server);
}

static void start_run(struct server *server, const struct session *asker, uint32_t id, unsigned pps, uint16_t port)
{
    record_open(&server->down);
    server->session = id;
    server->up_number = 0;
    server->refused_before = server->refused;
    server->bulk_bytes = 0;
    server->up_to = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(port), .sin_addr = asker->peer};
    pacer_start(&server->up, pps);
    adjust_tick(server);
}

/* False: not a request; the session is ended. */
static bool answer(struct server *server, struct session *session, const char *line)
{
    unsigned long long a, b, c;
    char reply[LINE_BYTES];
    int length;

    if (sscanf(line, "ping %llu", &a) == 1) {
        length = snprintf(reply, sizeof reply, "pong %llu %llu %016llx\n", a, (unsigned long long)++server->counter,
                          (unsigned long long)server->instance);
    } else if (sscanf(line, "window %llu %llu", &a, &b) == 2) {
        struct tally tally = record_window(&server->down, a, b);
        length = snprintf(reply, sizeof reply, "window %llu %llu %llu %llu\n", (unsigned long long)tally.unique,
                          (unsigned long long)tally.duplicates, (unsigned long long)tally.reordered,
                          (unsigned long long)(uint32_t)(server->refused - server->refused_before));
    } else if (sscanf(line, "start %llu %llu %llu", &a, &b, &c) == 3 && a <= UINT32_MAX && b <= MAX_PPS && c > 0 && c <= UINT16_MAX) {
        start_run(server, session, (uint32_t)a, (unsigned)b, (uint16_t)c);
        length = snprintf(reply, sizeof reply, "started\n");
    } else {
        return false;
    }
    return send(session->fd, reply, (size_t)length, MSG_DONTWAIT) == length;
}

static bool begin_bulk(struct server *server, struct session *session, const char *line)
{
    unsigned mbit;

    if (strcmp(line, "sink") == 0) {
        session->kind = BULK_SINK;
    } else if (sscanf(line, "send %u", &mbit) == 1 && mbit >= 1 && mbit <= MAX_BULK_MBIT) {
        session->kind = BULK_SEND;
        pacer_start(&session->pacer, mbit * 1e6 / 8);
        adjust_tick(server);
    } else {
        return false;
    }
    return true;
}

/* False: the session is over. */
static bool read_session(struct server *server, struct session *session)
{
    char line[LINE_BYTES];

    if (session->kind == BULK_SINK || session->kind == BULK_SEND) {
        static char sunk[BULK_CHUNK];
        ssize_t got = read(session->fd, sunk, sizeof sunk);
        if (got > 0)
            server->bulk_bytes += (uint64_t)got;
        return got > 0 || (got < 0 && (errno == EAGAIN || errno == EINTR));
    }
    if (!lines_fill(&session->lines, session->fd))
        return false;
    while (lines_next(&session->lines, line)) {
        if (session->kind == BULK_NEW) {
            if (!begin_bulk(server, session, line))
                return false;
            server->bulk_bytes += session->kind == BULK_SINK ? session->lines.length : 0;
            return true;
        }
        if (!answer(server, session, line))
            return false;
    }
    return true;
}

/*
 * Small packets at a high rate cost a slow (emulated) guest most of its time in its own stack, one by one. So the kernel hands over, in one read, what came in one turn of its
 * receive queue (UDP_GRO), and takes what is due at once (UDP_SEGMENT); the virtual wire and everything behind it sees each packet by itself.
 */
static void count_down(struct server *server, const char *bytes, size_t length)
{
    struct down_packet packet;

    if (length < sizeof packet)
        return;
    memcpy(&packet, bytes, sizeof packet);
    if (packet.magic == htobe32(DOWN_MAGIC) && packet.session == htobe32(server->session) && server->down.numbers != NULL)
        record_add(&server->down, be64toh(packet.number));
}

static void receive_down(struct server *server)
{
    static char bytes[64 * 1024];
    char control[256];
    struct iovec part = {.iov_base = bytes, .iov_len = sizeof bytes};

    for (;;) {
        struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
        ssize_t got = recvmsg(server->udp, &message, 0);
        size_t each = got > 0 ? (size_t)got : 0;

        if (got < 0)
            return;
        for (struct cmsghdr *said = CMSG_FIRSTHDR(&message); said != NULL; said = CMSG_NXTHDR(&message, said)) {
            int value;
            memcpy(&value, CMSG_DATA(said), sizeof value);
            if (said->cmsg_level == SOL_UDP && said->cmsg_type == UDP_GRO && value > 0)
                each = (size_t)value;
            if (said->cmsg_level == SOL_SOCKET && said->cmsg_type == SO_RXQ_OVFL)
                server->refused = (uint32_t)value;
        }
        for (size_t at = 0; at < (size_t)got; at += each)
            count_down(server, bytes + at, each < (size_t)got - at ? each : (size_t)got - at);
    }
}

static struct up_packet up_packet(const struct server *server, uint64_t number)
{
    return (struct up_packet){
        .magic = htobe32(UP_MAGIC),
        .session = htobe32(server->session),
        .number = htobe64(number),
        .guest_ns = htobe64((uint64_t)now_ns()),
        .instance = htobe64(server->instance),
        .highest = htobe64(server->down.highest),
        .unique = htobe64(server->down.unique),
        .duplicates = htobe64(server->down.duplicates),
        .reordered = htobe64(server->down.reordered),
        .bulk_bytes = htobe64(server->bulk_bytes),
    };
}

static void send_up(struct server *server, int64_t now)
{
    static struct up_packet batch[UDP_MOST_SEGMENTS];
    uint64_t due = server->up.per_second > 0 ? pacer_due(&server->up, now) : 0;

    while (due > 0 && server->up_number < MAX_NUMBER) {
        size_t count = due < UDP_MOST_SEGMENTS ? (size_t)due : UDP_MOST_SEGMENTS;

        for (size_t i = 0; i < count; i++)
            batch[i] = up_packet(server, server->up_number + 1 + i);
        /* What the own queue refuses has no number yet: it is not lost, only later. */
        if (sendto(server->udp, batch, count * sizeof *batch, 0, (struct sockaddr *)&server->up_to, sizeof server->up_to) < 0)
            return;
        server->up_number += count;
        server->up.done += (double)count;
        due -= count;
    }
}

static void send_bulk(struct server *server, int64_t now)
{
    for (int i = 0; i < MAX_SESSIONS; i++) {
        struct session *session = &server->sessions[i];
        uint64_t due = session->kind == BULK_SEND ? pacer_due(&session->pacer, now) : 0;
        ssize_t sent;

        if (due == 0)
            continue;
        sent = send(session->fd, bulk_bytes, due < BULK_CHUNK ? due : BULK_CHUNK, 0);
        if (sent > 0)
            session->pacer.done += (double)sent;
        else if (sent < 0 && errno != EAGAIN && errno != EINTR)
            end_session(server, session);
    }
}

static void serve(const char *address, uint16_t port, uint16_t bulk_port)
{
    static struct server server;
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(port)};

    handle_stop_signals();
    if (getrandom(&server.instance, sizeof server.instance, 0) < 0)
        die("getrandom: %s", strerror(errno));
    server.requests = listen_tcp(address, port);
    server.bulk = listen_tcp(address, bulk_port);
    server.udp = udp_socket();
    set_option(server.udp, SOL_SOCKET, SO_RXQ_OVFL, 1);
    set_option(server.udp, SOL_UDP, UDP_GRO, 1);
    set_option(server.udp, SOL_UDP, UDP_SEGMENT, sizeof(struct up_packet));
    inet_pton(AF_INET, address, &at.sin_addr);
    if (bind(server.udp, (struct sockaddr *)&at, sizeof at) < 0)
        die("cannot bind UDP port %u: %s", port, strerror(errno));
    server.tick = tick_timer();

    while (!stopping) {
        struct pollfd fds[4 + MAX_SESSIONS] = {
            {.fd = server.udp, .events = POLLIN}, {.fd = server.tick, .events = POLLIN},
            {.fd = server.requests, .events = POLLIN}, {.fd = server.bulk, .events = POLLIN}};
        int64_t now;

        for (int i = 0; i < MAX_SESSIONS; i++)
            fds[4 + i] = (struct pollfd){.fd = server.sessions[i].kind == FREE ? -1 : server.sessions[i].fd, .events = POLLIN};
        if (poll(fds, 4 + MAX_SESSIONS, -1) < 0)
            continue;
        receive_down(&server);
        if (fds[1].revents) {
            clear_tick(server.tick);
            now = now_ns();
            send_up(&server, now);
            send_bulk(&server, now);
        }
        for (int i = 0; i < MAX_SESSIONS; i++)
            if (fds[4 + i].revents && server.sessions[i].kind != FREE && !read_session(&server, &server.sessions[i]))
                end_session(&server, &server.sessions[i]);
        if (fds[2].revents)
            accept_session(&server, server.requests, REQUESTS);
        if (fds[3].revents)
            accept_session(&server, server.bulk, BULK_NEW);
    }
}
