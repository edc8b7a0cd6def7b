// RabbitMQ's Java client at the work of the RabbitMQ benchmark: prints seconds, processor seconds and peak KiB.
//
//   java Bench ADDRESS QUEUE publish|settle-each|settle-many|both WINDOW BODY WARM COUNT

import com.rabbitmq.client.AMQP;
import com.rabbitmq.client.Channel;
import com.rabbitmq.client.ConnectionFactory;
import com.rabbitmq.client.DefaultConsumer;
import com.rabbitmq.client.Envelope;
import com.rabbitmq.client.MessageProperties;
import java.io.IOException;
import java.lang.management.ManagementFactory;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.TreeSet;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.Semaphore;

public final class Bench {
    static final int ACK_EVERY = 100;

    /** Publishes, with so many unconfirmed at most. */
    static final class Publisher {
        final Channel channel;
        final String queue;
        final byte[] body;
        final int window;
        final Semaphore room;
        long mark;
        final TreeSet<Long> beyond = new TreeSet<>();

        Publisher(Channel channel, String queue, int window, byte[] body) throws IOException {
            this.channel = channel;
            this.queue = queue;
            this.window = window;
            this.body = body;
            room = new Semaphore(window);
            channel.confirmSelect();
            channel.addConfirmListener(this::confirmed, (tag, multiple) -> fail("a message was not confirmed"));
        }

        void confirmed(long tag, boolean multiple) {
            long before = mark + beyond.size();
            if (multiple) {
                mark = Math.max(mark, tag);
                beyond.headSet(mark, true).clear();
            } else if (tag > mark) {
                beyond.add(tag);
            }
            while (beyond.remove(mark + 1)) {
                mark++;
            }
            room.release((int) (mark + beyond.size() - before));
        }

        void publish(int count) throws Exception {
            AMQP.BasicProperties persistent = MessageProperties.MINIMAL_PERSISTENT_BASIC;
            for (int i = 0; i < count; i++) {
                room.acquire();
                channel.basicPublish("", queue, persistent, body);
            }
            room.acquire(window);
            room.release(window);
        }
    }

    /** Acks what comes, and counts it. */
    static final class Taker extends DefaultConsumer {
        final boolean many;
        final long warm;
        final long all;
        long taken;
        final CountDownLatch warmed = new CountDownLatch(1);
        final CountDownLatch done = new CountDownLatch(1);

        Taker(Channel channel, boolean many, long warm, long count) {
            super(channel);
            this.many = many;
            this.warm = warm;
            this.all = warm + count;
        }

        @Override
        public void handleDelivery(String tag, Envelope envelope, AMQP.BasicProperties properties, byte[] body)
                throws IOException {
            taken++;
            if (!many || taken % ACK_EVERY == 0 || taken == all) {
                getChannel().basicAck(envelope.getDeliveryTag(), many);
            }
            if (taken == warm) {
                warmed.countDown();
            }
            if (taken == all) {
                done.countDown();
            }
        }
    }

    static void fail(String why) {
        System.err.println(why);
        System.exit(1);
    }

    static double cpuSeconds() {
        var system = (com.sun.management.OperatingSystemMXBean) ManagementFactory.getOperatingSystemMXBean();
        return system.getProcessCpuTime() / 1e9;
    }

    static Thread publishing(Publisher publisher, int count) {
        Thread thread = new Thread(() -> {
            try {
                publisher.publish(count);
            } catch (Exception error) {
                fail(error.toString());
            }
        });
        thread.start();
        return thread;
    }

    public static void main(String[] args) throws Exception {
        String queue = args[1];
        String act = args[2];
        int window = Integer.parseInt(args[3]);
        byte[] body = new byte[Integer.parseInt(args[4])];
        int warm = Integer.parseInt(args[5]);
        int count = Integer.parseInt(args[6]);
        ConnectionFactory factory = new ConnectionFactory();
        factory.setUri(args[0]);

        boolean publishes = act.equals("publish") || act.equals("both");
        Publisher publisher =
                publishes ? new Publisher(factory.newConnection().createChannel(), queue, window, body) : null;
        Taker taker = null;
        if (!act.equals("publish")) {
            Channel channel = factory.newConnection().createChannel();
            channel.basicQos(window);
            taker = new Taker(channel, act.equals("settle-many"), warm, count);
            channel.basicConsume(queue, false, taker);
        }
        Thread thread = publishes ? publishing(publisher, warm) : null;
        if (taker != null) {
            taker.warmed.await();
        }
        if (thread != null) {
            thread.join();
        }
        long began = System.nanoTime();
        double before = cpuSeconds();
        thread = publishes ? publishing(publisher, count) : null;
        if (taker != null) {
            taker.done.await();
        }
        if (thread != null) {
            thread.join();
        }
        double cpu = cpuSeconds() - before;
        double seconds = (System.nanoTime() - began) / 1e9;
        String peak = Files.readAllLines(Path.of("/proc/self/status")).stream()
                .filter(line -> line.startsWith("VmHWM:"))
                .findFirst()
                .map(line -> line.replaceAll("[^0-9]", ""))
                .orElse("0");
        System.out.println(seconds + " " + cpu + " " + peak);
        System.exit(0);
    }
}
