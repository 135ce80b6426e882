import com.google.gson.Gson;
import com.google.gson.JsonObject;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.file.Path;
import java.util.HashMap;
import java.util.Map;
import java.util.UUID;
import java.util.function.Supplier;
import javax.net.ssl.SSLContext;

/**
 * Requests to the platform of check.py, put together as wechatpay-java does, without it.
 *
 * <p>Check PLATFORM AUTHORITY DAEMON FOLDER MCHID
 */
final class Check {
  private static final Gson GSON = new Gson();
  private final String platform;
  private final Opcert daemon;
  private final HttpClient http;

  private Check(String platform, Path authority, Opcert daemon) throws Exception {
    this.platform = platform;
    this.daemon = daemon;
    SSLContext tls = SSLContext.getInstance("TLSv1.3");
    tls.init(null, Opcert.trust(authority).getTrustManagers(), null);
    http = HttpClient.newBuilder().sslContext(tls).build();
  }

  /** Sends one signed request and answers what came back once it is known to be the platform's. */
  private JsonObject call(String method, String target, String body) throws Exception {
    String nonce = UUID.randomUUID().toString().replace("-", "");
    long second = System.currentTimeMillis() / 1000;
    Opcert.Signed signed =
        daemon.sign(String.join("\n", method, target, "" + second, nonce, body) + "\n");
    String authorization =
        String.format(
            "WECHATPAY2-SHA256-RSA2048 mchid=\"%s\",nonce_str=\"%s\",timestamp=\"%d\","
                + "serial_no=\"%s\",signature=\"%s\"",
            daemon.merchant, nonce, second, signed.serial(), signed.signature());
    HttpRequest request =
        HttpRequest.newBuilder(URI.create(platform + target))
            .method(method, HttpRequest.BodyPublishers.ofString(body))
            .header("Accept", "application/json")
            .header("Authorization", authorization)
            .header("Wechatpay-Serial", daemon.serial())
            .build();
    HttpResponse<String> answer = http.send(request, HttpResponse.BodyHandlers.ofString());
    expect(answer.statusCode() == 200, answer.body());
    Map<String, String> headers = new HashMap<>();
    answer.headers().map().forEach((name, values) -> headers.put(name, values.get(0)));
    daemon.verify(headers, answer.body());
    return GSON.fromJson(answer.body(), JsonObject.class);
  }

  private JsonObject get(String target) {
    try {
      return call("GET", target, "");
    } catch (Opcert.Refused error) {
      throw error;
    } catch (Exception error) {
      throw new IllegalStateException(error);
    }
  }

  public static void main(String[] arguments) throws Exception {
    Opcert daemon = new Opcert(arguments[2], Path.of(arguments[3]), arguments[4]);
    Check shop = new Check(arguments[0], Path.of(arguments[1]), daemon);

    String order =
        "{\"description\":\"中文 \\\"quoted\\\"\",\"out_trade_no\":\"java-1\",\"amount\":{\"total\":1}}";
    JsonObject created = shop.call("POST", "/v3/pay/transactions/native", order);
    expect(created.get("code_url").getAsString().endsWith("pr=java-1"), created);
    String orders = "/v3/pay/transactions/out-trade-no/";
    JsonObject found = shop.get(orders + "java-1?mchid=" + daemon.merchant);
    expect(found.get("trade_state").getAsString().equals("SUCCESS"), found);
    // Answers with a probe's signature, or with a body that was changed, are refused.
    for (String name : new String[] {"PROBE", "CHANGED"}) {
      refused(() -> shop.get(orders + name), "[wechatpay-signature]");
    }
    for (String text : new String[] {"", "pay everything to me\n", "a\nb\nc\nd\n"}) {
      refused(() -> daemon.sign(text), "no message");
    }

    // A field goes to the platform, which sends it back encrypted for the merchant.
    JsonObject person = new JsonObject();
    person.addProperty("name", daemon.encrypt("王小明"));
    JsonObject echoed = shop.call("POST", "/v3/fields", person.toString());
    String name = daemon.decrypt(echoed.get("name").getAsString());
    expect(name.equals("王小明"), name);

    // A callback opens once; delivered anew, it is told to be the same event.
    for (boolean again : new boolean[] {false, true}) {
      JsonObject sent = shop.get("/v3/callback/EV-java");
      Map<String, String> headers = new HashMap<>();
      sent.getAsJsonObject("headers")
          .entrySet()
          .forEach(header -> headers.put(header.getKey(), header.getValue().getAsString()));
      String body = sent.get("body").getAsString();
      JsonObject opened = daemon.open(headers, body);
      expect(opened.get("resource").getAsString().equals("{\"amount\": 1}"), opened);
      expect(opened.has("first_delivered_at") == again, opened);
      refused(() -> daemon.open(headers, body), "[wechatpay-replayed]");
    }
    System.out.println("java: ok");
  }

  static void expect(boolean holds, Object found) {
    if (!holds) {
      throw new IllegalStateException("unexpected: " + found);
    }
  }

  static void refused(Supplier<?> call, String why) {
    try {
      call.get();
    } catch (RuntimeException error) {
      expect(error.getMessage().contains(why), error);
      return;
    }
    throw new IllegalStateException("not refused with " + why);
  }
}
