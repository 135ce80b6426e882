import com.google.gson.Gson;
import com.google.gson.JsonObject;
import java.io.ByteArrayInputStream;
import java.io.IOException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.GeneralSecurityException;
import java.security.KeyFactory;
import java.security.KeyStore;
import java.security.PrivateKey;
import java.security.cert.Certificate;
import java.security.cert.CertificateFactory;
import java.security.spec.PKCS8EncodedKeySpec;
import java.util.Base64;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import javax.net.ssl.KeyManagerFactory;
import javax.net.ssl.SSLContext;
import javax.net.ssl.TrustManagerFactory;

/** The native door of opcertd, as one merchant's server uses it. */
final class Opcert {
  /** What the daemon does not do; the code stands in brackets. */
  static final class Refused extends RuntimeException {
    Refused(String message) {
      super(message);
    }
  }

  /** A signature and the certificate it is of. */
  record Signed(String signature, String serial) {}

  final String merchant;
  private final String address;
  private final HttpClient door;
  private final Gson gson = new Gson();

  /** {@code folder} is what {@code opcert client add} wrote. */
  Opcert(String address, Path folder, String merchant)
      throws GeneralSecurityException, IOException {
    this.merchant = merchant;
    this.address = address;
    String key =
        Files.readString(folder.resolve("client-key.pem")).replaceAll("-----.*?-----|\\s", "");
    PrivateKey own =
        KeyFactory.getInstance("EC")
            .generatePrivate(new PKCS8EncodedKeySpec(Base64.getDecoder().decode(key)));
    KeyStore identity = KeyStore.getInstance("PKCS12");
    identity.load(null);
    Certificate[] chain = {certificate(folder.resolve("client.pem"))};
    identity.setKeyEntry("client", own, new char[0], chain);
    KeyManagerFactory keys = KeyManagerFactory.getInstance("PKIX");
    keys.init(identity, new char[0]);
    SSLContext tls = SSLContext.getInstance("TLSv1.3");
    tls.init(keys.getKeyManagers(), trust(folder.resolve("server-ca.pem")).getTrustManagers(), null);
    door = HttpClient.newBuilder().sslContext(tls).build();
  }

  static TrustManagerFactory trust(Path authority) throws GeneralSecurityException, IOException {
    KeyStore trusted = KeyStore.getInstance("PKCS12");
    trusted.load(null);
    trusted.setCertificateEntry("authority", certificate(authority));
    TrustManagerFactory trust = TrustManagerFactory.getInstance("PKIX");
    trust.init(trusted);
    return trust;
  }

  private static Certificate certificate(Path pem) throws GeneralSecurityException, IOException {
    return CertificateFactory.getInstance("X.509")
        .generateCertificate(new ByteArrayInputStream(Files.readAllBytes(pem)));
  }

  JsonObject ask(String path, Map<String, Object> parts) {
    Map<String, Object> body = new LinkedHashMap<>(parts);
    body.put("merchant", merchant);
    HttpRequest request =
        HttpRequest.newBuilder(URI.create(address + "/v1/wechatpay/" + path))
            .header("Content-Type", "application/json")
            .POST(HttpRequest.BodyPublishers.ofString(gson.toJson(body)))
            .build();
    try {
      HttpResponse<String> answer = door.send(request, HttpResponse.BodyHandlers.ofString());
      JsonObject content = gson.fromJson(answer.body(), JsonObject.class);
      if (answer.statusCode() != 200) {
        throw new Refused(
            content.get("detail").getAsString() + " [" + content.get("code").getAsString() + "]");
      }
      return content;
    } catch (IOException | InterruptedException error) {
      throw new Refused("the daemon cannot be reached: " + error);
    }
  }

  /**
   * Takes the string that a key would sign. The daemon signs no such thing: it gets the parts and
   * builds the string itself, so a string with anything else in it has no valid signature.
   */
  Signed sign(String message) {
    String[] part = message.split("\n", 5);
    if (part.length != 5 || !message.endsWith("\n")) {
      throw new Refused("this is no message to the platform");
    }
    boolean starts = part[0].startsWith("wx") || part[0].startsWith("ww");
    return starts ? start(part) : request(part);
  }

  private Signed request(String[] part) {
    JsonObject signed =
        ask(
            "v3/authorization",
            Map.of(
                "method", part[0],
                "target", part[1],
                "timestamp", seconds(part[2]),
                "nonce", part[3],
                "body_base64", base64(part[4].substring(0, part[4].length() - 1))));
    return new Signed(signed.get("signature").getAsString(), signed.get("serial").getAsString());
  }

  /** Signs what starts a payment: appid, timestamp, nonce, prepay id. */
  private Signed start(String[] part) {
    if (!part[4].isEmpty()) {
      throw new Refused("this is no message to the platform");
    }
    boolean page = part[3].startsWith("prepay_id=");
    JsonObject signed =
        ask(
            "v3/paysign",
            Map.of(
                "client", page ? "jsapi" : "app",
                "appid", part[0],
                "timestamp", seconds(part[1]),
                "nonce", part[2],
                "prepay_id", page ? part[3].substring("prepay_id=".length()) : part[3]));
    JsonObject parameters = signed.getAsJsonObject("parameters");
    return new Signed(
        parameters.get(page ? "paySign" : "sign").getAsString(),
        signed.get("serial").getAsString());
  }

  /** Checks that an answer is the platform's. */
  void verify(Map<String, String> headers, String body) {
    ask("v3/verify", Map.of("headers", headers, "body_base64", base64(body)));
  }

  /** Names the key that fields are encrypted for, and that answers are to be signed with. */
  String serial() {
    return ask("v3/fields/encrypt", Map.of("fields", List.of(""))).get("serial").getAsString();
  }

  /** Encrypts a field for the key that {@link #serial()} names. */
  String encrypt(String plaintext) {
    return field(ask("v3/fields/encrypt", Map.of("fields", List.of(plaintext))));
  }

  /** Decrypts a field, on the token. */
  String decrypt(String ciphertext) {
    return field(ask("v3/fields/decrypt", Map.of("fields", List.of(ciphertext))));
  }

  /** Verifies a callback and opens it, in place of {@code NotificationParser}. */
  JsonObject open(Map<String, String> headers, String body) {
    return ask("v3/decrypt", Map.of("headers", headers, "body_base64", base64(body)));
  }

  private static String field(JsonObject answer) {
    return answer.getAsJsonArray("fields").get(0).getAsString();
  }

  private static long seconds(String text) {
    try {
      return Long.parseLong(text);
    } catch (NumberFormatException error) {
      throw new Refused("this is no message to the platform");
    }
  }

  private static String base64(String text) {
    return Base64.getEncoder().encodeToString(text.getBytes(StandardCharsets.UTF_8));
  }
}
